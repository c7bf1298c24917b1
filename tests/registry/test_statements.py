"""SQL against the migrated schema, as the role that will run it."""

import re
from pathlib import Path

import pytest

import twofold_registry
from tests.registry.stubs import Connection
from twofold_chassis.requests import Requests
from twofold_registry.store.statements import STATEMENTS

ROOM = Path(twofold_registry.__file__).parent
ALL = {**STATEMENTS, **Requests("registry").statements}


@pytest.mark.parametrize("name", ALL)
async def test_every_statement_is_one_that_the_services_role_can_prepare(application: Connection, name: str) -> None:
    assert await application.prepare(ALL[name])


def test_every_statement_is_used_and_every_used_one_exists() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in ROOM.rglob("*.py"))
    unused = {name for name in STATEMENTS if f'"{name}"' not in code}
    assert not unused
    assert set(re.findall(r'STATEMENTS\["(\w+)"\]', code)) <= STATEMENTS.keys()
