"""Usage that the ledger may not know yet."""

from pathlib import Path

from twofold_chassis.migrations import execute_file

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    execute_file(Path(__file__).with_suffix(".sql"))
