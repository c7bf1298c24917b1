"""Redis, refillable from Postgres: nothing in here is the only copy of anything."""
