"""Whether the store is there and fit for use."""

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_chassis.refusals import Overloaded, Unavailable
from twofold_chassis.start import StartError
from twofold_registry.store.statements import STATEMENTS


async def require_schema(pool: Pool) -> None:
    """Raises StartError if nobody has migrated the schema, or this role may not use it."""
    try:
        async with postgres.connection(pool) as connection:
            await connection.fetchrow(STATEMENTS["read_head"])
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.InsufficientPrivilegeError) as error:
        raise StartError(f"the schema registry is not ready for this role ({error}): migrate it first") from None
    except (Unavailable, Overloaded) as refusal:
        raise StartError(f"cannot reach Postgres (DATABASE__URL): {refusal.message}") from None


async def answers(pool: Pool) -> bool:
    """Whether Postgres answers. A pool that is all in use says so to its callers; the service is still able."""
    try:
        async with postgres.connection(pool) as connection:
            await connection.fetchrow(STATEMENTS["read_head"])
    except Overloaded:
        return True
    except (Unavailable, asyncpg.PostgresError):  # whatever it says instead of the head, nothing can be done with it
        return False
    return True
