"""The audit is found by everything that it is asked for; the ends of its chains only move on."""

from pathlib import Path

from twofold_chassis.migrations import execute_file

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    execute_file(Path(__file__).with_suffix(".sql"))
