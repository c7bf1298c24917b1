"""`python -m twofold_memory`: the memory service."""

from twofold_chassis import server
from twofold_memory.app import memory
from twofold_memory.settings import Settings


def main() -> None:
    """Runs the service until it is told to stop."""
    server.main(Settings, memory, service="memory")


if __name__ == "__main__":
    main()
