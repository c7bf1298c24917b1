"""What workspaces, users and agents have since their first form."""

from pathlib import Path

from twofold_chassis.migrations import execute_file

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    execute_file(Path(__file__).with_suffix(".sql"))
