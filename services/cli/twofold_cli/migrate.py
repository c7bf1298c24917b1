"""Brings all schemas up to date."""

from collections.abc import Mapping

from pydantic import ValidationError

import twofold_memory.migrate
import twofold_registry.migrate
from twofold_chassis.settings import DatabaseSettings
from twofold_chassis.start import StartError

_PREFIX = "DATABASE__"


async def migrate_all(environment: Mapping[str, str]) -> None:
    """Migrates the schemas of registry and memory, as the owner that the environment names. Raises StartError."""
    database = database_of(environment)
    await twofold_registry.migrate.migrate(database)
    await twofold_memory.migrate.migrate(database)


def database_of(environment: Mapping[str, str]) -> DatabaseSettings:
    """The database that an environment names. Raises StartError."""
    given = {name[len(_PREFIX) :].lower(): value for name, value in environment.items() if name.upper().startswith(_PREFIX)}
    try:
        return DatabaseSettings.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(
            f"{_PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors(include_input=False)
        )
        raise StartError(f"wrong settings: {problems}") from None
