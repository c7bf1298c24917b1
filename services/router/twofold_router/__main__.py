"""Runs the router: `twofold-router`, or `python -m twofold_router`."""

from twofold_chassis import server
from twofold_router.app import router
from twofold_router.settings import Settings


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    server.main(Settings, router, service="router")


if __name__ == "__main__":
    main()
