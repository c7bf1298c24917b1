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
# Files whose statements belong to no tenant: they run as the system role, and so does the sweep of all requests.
OF_NO_TENANT = ("feed", "pods", "sweeps")


def system_statements() -> set[str]:
    files = [ROOM / "store" / "sql" / f"{name}.sql" for name in OF_NO_TENANT]
    texts = [file.read_text(encoding="utf-8") for file in files if file.exists()]
    return {"forget_answers", *re.findall(r"^-- name: (\w+)$", "".join(texts), re.MULTILINE)}


@pytest.mark.parametrize("name", ALL)
async def test_every_statement_is_one_that_the_services_role_can_prepare(
    application: Connection, system: Connection, name: str
) -> None:
    role = system if name in system_statements() else application
    assert await role.prepare(ALL[name])


def test_every_statement_is_used_and_every_used_one_exists() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in ROOM.rglob("*.py"))
    unused = {name for name in STATEMENTS if f'"{name}"' not in code}
    assert not unused
    assert set(re.findall(r'STATEMENTS\["(\w+)"\]', code)) <= STATEMENTS.keys()
