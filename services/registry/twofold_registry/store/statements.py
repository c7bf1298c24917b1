"""All statements of this room, by name."""

from twofold_chassis import sql

STATEMENTS = sql.load("twofold_registry.store.sql")
