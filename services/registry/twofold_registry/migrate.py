"""Brings the schema of the registry up to date."""

from pathlib import Path

from twofold_chassis import migrations
from twofold_chassis.settings import DatabaseSettings


async def migrate(database: DatabaseSettings) -> None:
    """Safe when several processes do it at once. Raises StartError."""
    await migrations.upgrade(database, schema="registry", folder=Path(__file__).parent / "migrations")
