"""Pods of the control plane, and the history of sessions."""

from pathlib import Path

from twofold_chassis.migrations import execute_file

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    execute_file(Path(__file__).with_suffix(".sql"))
