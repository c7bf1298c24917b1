"""How services see the databases of tests."""

from typing import Any

from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import DatabaseUrls, EmbeddedPostgres


def settings_of_database(server: DatabaseUrls | EmbeddedPostgres, **values: Any) -> DatabaseSettings:
    """How services see a database: by each of their roles."""
    if isinstance(server, EmbeddedPostgres):
        server = server.urls
    urls = {"url": server.app, "migrate_url": server.owner, "system_url": server.system, "direct_url": server.system}
    return DatabaseSettings.model_validate(urls | values)
