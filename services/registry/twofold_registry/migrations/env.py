"""Alembic's environment of this room; see twofold_chassis.migrations."""

from twofold_chassis.migrations import run_environment

run_environment()
