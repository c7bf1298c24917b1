"""The registry as a process."""

from twofold_chassis import server
from twofold_registry.app import registry
from twofold_registry.settings import Settings


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    server.main(Settings, registry, service="registry")


if __name__ == "__main__":
    main()
