"""Journaled turns, changes to the past, branches."""

from pathlib import Path

from twofold_chassis.migrations import execute_file

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    execute_file(Path(__file__).with_suffix(".sql"))
