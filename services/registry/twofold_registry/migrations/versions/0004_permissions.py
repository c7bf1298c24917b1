"""Listings of permissions."""

from pathlib import Path

from twofold_chassis.migrations import execute_file

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    execute_file(Path(__file__).with_suffix(".sql"))
