"""A schema of the chassis' own tests."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from twofold_chassis import postgres
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import DatabaseUrls, EmbeddedPostgres

REQUESTS = """
CREATE SCHEMA room;
CREATE TABLE room.requests (
    workspace_id text, request_id text, rpc text, body_hash bytea, answer bytea, created_at timestamptz DEFAULT now(),
    PRIMARY KEY (workspace_id, request_id)
);
CREATE TABLE room.things (id int PRIMARY KEY, value int NOT NULL DEFAULT 0);
INSERT INTO room.things (id) VALUES (1), (2);
"""


@pytest.fixture(scope="session")
async def chassis_urls(postgres_server: EmbeddedPostgres) -> DatabaseUrls:
    urls = await postgres_server.create_database("chassis_tests")
    connection = await asyncpg.connect(urls.owner)
    await connection.execute(REQUESTS)
    await connection.close()
    return urls


@pytest.fixture
async def pool(chassis_urls: DatabaseUrls) -> AsyncIterator[postgres.Pool]:
    settings = DatabaseSettings.model_validate({"url": chassis_urls.owner, "command_timeout_s": 2})
    pool = await postgres.open_pool(settings, name="test")
    yield pool
    await postgres.close_pool(pool)
