"""How services see the databases of tests, and databases of one test's own."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import DatabaseUrls, EmbeddedPostgres


def settings_of_database(server: DatabaseUrls | EmbeddedPostgres, **values: Any) -> DatabaseSettings:
    """How services see a database: by each of their roles."""
    if isinstance(server, EmbeddedPostgres):
        server = server.urls
    urls = {"url": server.app, "migrate_url": server.owner, "system_url": server.system, "direct_url": server.system}
    return DatabaseSettings.model_validate(urls | values)


@contextlib.asynccontextmanager
async def own_database(server: EmbeddedPostgres, what: str) -> AsyncIterator[DatabaseUrls]:
    """An empty database that is there for the block only; `what` begins its name."""
    name = f"{what}_{uuid.uuid4().hex[:8]}"
    urls = await server.create_database(name)
    try:
        yield urls
    finally:
        await server.drop_database(name)
