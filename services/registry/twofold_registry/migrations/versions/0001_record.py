"""Workspaces, users, agents, grants, usage, audit, answered requests, and the head of the history."""

from pathlib import Path

from twofold_chassis.migrations import execute_file

revision = "0001"
down_revision = None


def upgrade() -> None:
    execute_file(Path(__file__).with_suffix(".sql"))
