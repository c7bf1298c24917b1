"""Prices, rollups, caps, months and invoices."""

from pathlib import Path

from twofold_chassis.migrations import execute_file

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    execute_file(Path(__file__).with_suffix(".sql"))
