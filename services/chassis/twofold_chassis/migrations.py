"""Migrations: Alembic with plain SQL inside, one history per service, safe when several processes start at once."""

import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import alembic.command
import alembic.util
import asyncpg
from alembic import context, op
from alembic.config import Config
from sqlalchemy import Connection, pool, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from twofold_chassis import postgres
from twofold_chassis.settings import DatabaseSettings
from twofold_chassis.start import StartError

_WAIT_FOR_OTHERS_S = 60
_NAME = re.compile(r"[a-z_]{1,40}")


async def upgrade(settings: DatabaseSettings, *, schema: str, folder: Path, revision: str = "head") -> None:
    """Brings `schema` to `revision` with the migrations in `folder`, in one transaction, as the owner role.

    The first of several processes does the work under an advisory lock, the others wait and find nothing to do. Afterwards
    the application role (the user of DATABASE__URL) is given what `folder`/grants.sql says, and no more; the system role
    (the user of DATABASE__SYSTEM_URL) and the owner what `folder`/policies.sql says, if there is one. Raises StartError.
    """
    assert _NAME.fullmatch(schema)
    roles = {
        "application": _user(settings.url.get_secret_value()),
        "system": _user(settings.system.url.get_secret_value()),
    }
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["schema"] = schema
    engine = create_async_engine("postgresql+asyncpg://", poolclass=pool.NullPool, async_creator=_connecting(settings))
    try:
        async with engine.begin() as connection:
            await connection.execute(text(f"SET LOCAL lock_timeout = '{_WAIT_FOR_OTHERS_S}s'"))
            await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"twofold.{schema}"})
            await connection.run_sync(_run(config, revision))
            await connection.run_sync(lambda bound: _grant(bound, folder, roles))
    except (SQLAlchemyError, *postgres.CANNOT_CONNECT) as error:
        told = postgres.told(_driver_error(error))
        raise StartError(f"cannot migrate the schema {schema} ({settings.owner_setting}): {told}") from error
    except alembic.util.CommandError as error:
        raise StartError(f"cannot migrate the schema {schema}: {error}") from None
    finally:
        await engine.dispose()


def run_environment() -> None:
    """The body of every room's `migrations/env.py`: Alembic runs on the connection that `upgrade` opened."""
    connection: Connection = context.config.attributes["connection"]
    schema: str = context.config.attributes["schema"]
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
    context.configure(connection=connection, version_table_schema=schema)
    context.run_migrations()


def execute_file(path: Path) -> None:
    """Runs a file of several SQL statements inside the running migration."""
    _execute(op.get_bind(), path.read_text(encoding="utf-8"))


def _run(config: Config, revision: str) -> Callable[[Connection], None]:
    def run(connection: Connection) -> None:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)

    return run


def _grant(connection: Connection, folder: Path, roles: Mapping[str, str]) -> None:
    owner = connection.execute(text("SELECT current_user")).scalar_one()
    if roles["system"] == owner and roles["application"] != owner:
        raise StartError("DATABASE__SYSTEM_URL must name a role of its own, not the owner of the schema")
    quoted = {
        name: connection.execute(text("SELECT quote_ident(:name)"), {"name": role or owner}).scalar_one()
        for name, role in {**roles, "owner": owner}.items()
    }
    scripts = ["policies.sql"] if roles["application"] in ("", owner) else ["grants.sql", "policies.sql"]
    for script in (folder / name for name in scripts):
        if script.exists():
            _execute(connection, _filled(script.read_text(encoding="utf-8"), quoted))


def _filled(script: str, quoted: Mapping[str, str]) -> str:
    for name, role in quoted.items():
        script = script.replace(f"{{{name}}}", role)
    return script


def _user(url: str) -> str:
    return unquote(urlsplit(url).username or "")


def _execute(connection: Connection, script: str) -> None:
    # A prepared statement holds one command; a script goes to the driver's own simple query protocol, inside the
    # transaction that SQLAlchemy has begun on it.
    adapted = connection.connection.dbapi_connection
    assert adapted is not None
    adapted.run_async(lambda driver: driver.execute(script))


def _connecting(settings: DatabaseSettings) -> Callable[[], Awaitable[Any]]:
    """Connects as the services do, so that one URL means the same to both."""

    async def connect() -> Any:
        # Migrations run once: prepared statements gain nothing here and would break behind PgBouncer.
        try:
            connection = await asyncpg.connect(
                settings.owner_url.get_secret_value(), timeout=settings.connect_timeout_s, statement_cache_size=0
            )
        except postgres.CANNOT_CONNECT as error:
            raise postgres.unreachable(error, settings.owner_setting) from None
        try:
            postgres.check_version(connection, settings.owner_setting)
        except StartError:
            await connection.close()
            raise
        return connection

    return connect


def _driver_error(error: BaseException) -> BaseException:
    """The driver's own error inside one of SQLAlchemy's, whose text is for programmers."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error
