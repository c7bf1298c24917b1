"""Sweeps: what is over goes, all else stays, whoever sweeps beside, and a failure of one holds up no other."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import grpc
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from prometheus_client import CollectorRegistry

from tests.databases import own_database, settings_of_database
from tests.registry.scrapes import scraped
from tests.registry.stubs import Connection, Registry, settings_of
from tests.waiting import until
from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_chassis.refusals import StoreUnavailable
from twofold_chassis.requests import Requests
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_registry.app import registry
from twofold_registry.migrate import migrate
from twofold_registry.settings import RegistrySettings
from twofold_registry.store.sweeps import postgres_sweeps
from twofold_registry.sweeps import AT_ONCE, Sweep, Sweeps

OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"
AT_ONCE_OLD = RegistrySettings.model_construct(changes_kept_s=0, sessions_kept_days=1, pods_kept_days=1)
KEPT = RegistrySettings(changes_kept_s=600, sessions_kept_days=10, pods_kept_days=5)


@dataclass(frozen=True)
class Swept:
    """A database that nobody serves: as its owner sees it, and as those who sweep it do."""

    settings: DatabaseSettings
    owner: Connection
    system: Pool

    def sweeps(self) -> dict[str, Sweep]:
        found = postgres_sweeps(self.system, KEPT, Requests("registry", is_swept=True))
        return {sweep.what: sweep for sweep in found}

    async def sweep(self, what: str, most: int = AT_ONCE) -> int:
        """How many rows went."""
        return await self.sweeps()[what].run(most)

    async def column(self, query: str) -> list[object]:
        return [row[0] for row in await self.owner.fetch(query)]


@pytest.fixture(scope="module")
async def database(postgres_server: EmbeddedPostgres) -> AsyncIterator[Swept]:
    async with own_database(postgres_server, "sweeps") as urls:
        chosen = settings_of_database(urls)
        await migrate(chosen)
        system = await postgres.open_pool(chosen.system, name="sweeps")
        owner = await asyncpg.connect(urls.owner)
        yield Swept(chosen, owner, system)
        await owner.close()
        await postgres.close_pool(system)


@pytest.fixture
async def swept(database: Swept) -> Swept:
    for table in ("watchers", "pods", "sessions", "requests"):
        await database.owner.execute(f"DELETE FROM registry.{table}")
    await database.owner.execute("DELETE FROM registry.workspaces WHERE workspace_id NOT LIKE 'made-%'")
    await put_changes(database, [])
    return database


async def put_changes(swept: Swept, ages_s: Sequence[float], *, items: int = 1) -> None:
    """Changes 1, 2, 3, … of these ages, with so many items each, in a history that has no others."""
    await swept.owner.execute("DELETE FROM registry.changes")
    await swept.owner.execute("UPDATE registry.registry_head SET revision = $1, compacted = 0", len(ages_s))
    await swept.owner.executemany(
        "INSERT INTO registry.changes (revision, ordinal, tag, at, kind, workspace_id, user_id, agent_id, wait)"
        " VALUES ($1, $2, 7, now() - make_interval(secs => $3), 'user', 'w', 'u', '', false)",
        [(number, ordinal, age) for number, age in enumerate(ages_s, 1) for ordinal in range(items)],
    )


async def history(swept: Swept) -> tuple[int, list[int]]:
    """Up to where it is compacted, and which revisions have their changes."""
    compacted = await swept.owner.fetchval("SELECT compacted FROM registry.registry_head")
    rows = await swept.owner.fetch("SELECT DISTINCT revision FROM registry.changes ORDER BY revision")
    return compacted, [row["revision"] for row in rows]


async def test_old_changes_go_and_the_head_says_up_to_where(swept: Swept) -> None:
    await put_changes(swept, [900, 800, 700, 500, 400], items=2)
    assert await swept.sweep("changes") == 6
    assert await history(swept) == (3, [4, 5])
    assert await swept.sweep("changes") == 0
    assert await history(swept) == (3, [4, 5])


async def test_the_newest_change_stays_however_old_it_is(swept: Swept) -> None:
    await put_changes(swept, [900, 800, 700])
    assert await swept.sweep("changes") == 2
    assert await history(swept) == (2, [3])


async def test_changes_go_a_bounded_number_at_a_time_and_whole(swept: Swept) -> None:
    await put_changes(swept, [900] * 10, items=3)
    assert await swept.sweep("changes", 4) == 6  # the fourth row belongs to the second revision
    assert await history(swept) == (2, list(range(3, 11)))
    assert await swept.sweep("changes", 1) == 3
    assert await history(swept) == (3, list(range(4, 11)))


async def test_a_history_that_is_empty_or_that_lacks_its_past_is_left_alone(swept: Swept) -> None:
    assert await swept.sweep("changes") == 0
    assert (await history(swept))[0] == 0
    await swept.owner.execute("UPDATE registry.registry_head SET revision = 9, compacted = 9")  # as after the migration
    assert await swept.sweep("changes") == 0
    assert (await history(swept))[0] == 9


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ages=some.lists(some.sampled_from([0, 500, 700, 900]), max_size=8), most=some.integers(1, 10))
async def test_what_is_kept_has_no_gap_also_where_the_clock_was_put_back(swept: Swept, ages: list[float], most: int) -> None:
    await put_changes(swept, ages)
    while await swept.sweep("changes", most):
        pass
    old = next((place for place, age in enumerate(ages) if age < 600), len(ages))
    compacted = max(0, min(old, len(ages) - 1))
    assert await history(swept) == (compacted, list(range(compacted + 1, len(ages) + 1)))


async def test_many_processes_compact_at_once(swept: Swept) -> None:
    await put_changes(swept, [900] * 300 + [0] * 5)
    counts = await asyncio.gather(*(swept.sweep("changes", 40) for _ in range(20)))
    assert sum(counts) == (await history(swept))[0]
    while await swept.sweep("changes", 40):
        pass
    assert await history(swept) == (300, [301, 302, 303, 304, 305])


async def test_what_is_kept_has_no_gap_while_changes_are_made(swept: Swept) -> None:
    compact = {sweep.what: sweep for sweep in postgres_sweeps(swept.system, AT_ONCE_OLD, Requests("registry"))}["changes"]
    async with (
        registry(settings_of(swept.settings)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        api = Registry(channel)
        writers = [asyncio.create_task(_write(api, f"made-{index}")) for index in range(8)]
        counts: list[int] = []
        while not all(writer.done() for writer in writers):
            counts += await asyncio.gather(compact.run(3), compact.run(5))
            compacted, kept = await history(swept)
            assert kept == list(range(compacted + 1, compacted + 1 + len(kept)))
        await asyncio.gather(*writers)
    while await compact.run(7):
        pass
    head = await swept.owner.fetchval("SELECT revision FROM registry.registry_head")
    assert (await history(swept), head) == ((79, [80]), 80)
    assert sum(map(bool, counts)) > 1, "some went meanwhile"


async def _write(api: Registry, workspace_id: str) -> None:
    await api.make_workspace(workspace_id)
    for index in range(9):
        await api.make_user(workspace_id, f"user-{index}")


async def test_routers_go_when_their_time_is_over(swept: Swept) -> None:
    await swept.owner.execute(
        "INSERT INTO registry.watchers (router_id, incarnation, expires_at) VALUES"
        " ('gone', '1', now() - interval '1 second'), ('there', '1', now() + interval '1 minute'),"
        " ('there', '0', now() - interval '1 minute')"
    )
    assert await swept.sweep("watchers") == 2
    assert await swept.column("SELECT router_id || incarnation FROM registry.watchers") == ["there1"]


async def put_workspace(swept: Swept, workspace_id: str, *, session_days: int = 0) -> None:
    await swept.owner.execute(
        "INSERT INTO registry.workspaces (workspace_id, created_at, updated_at, revision, display_name, namespace,"
        " allowed_url_suffixes, session_days) VALUES ($1, now(), now(), 1, 'W', '', '{}', $2)",
        workspace_id,
        session_days,
    )


async def put_session(swept: Swept, workspace_id: str, session_id: str, *, days: int, is_open: bool = False) -> None:
    """One that was heard of so many days ago."""
    await swept.owner.execute(
        "INSERT INTO registry.sessions (workspace_id, session_id, fence, user_id, agent_id, pod_id, pod_epoch, pod_number,"
        " opened_at, closed_at, close_reason, heard_at)"
        " SELECT $1, $2, 0, 'u', 'a', 'p', 1, 1, t, CASE WHEN NOT $4 THEN t END, CASE WHEN $4 THEN 0 ELSE 1 END, t"
        " FROM (SELECT now() - make_interval(days => $3, mins => 1)) AS x (t)",
        workspace_id,
        session_id,
        days,
        is_open,
    )


async def test_sessions_are_forgotten_after_the_registrys_time_or_the_shorter_one_of_their_workspace(swept: Swept) -> None:
    for workspace, days in (("default", 0), ("short", 3), ("long", 100)):
        await put_workspace(swept, workspace, session_days=days)
        for age in (1, 3, 9, 10):
            await put_session(swept, workspace, f"{workspace}-{age}", days=age)
    await put_session(swept, "default", "open", days=10, is_open=True)
    assert await swept.sweep("sessions") == 4
    left = "SELECT session_id FROM registry.sessions ORDER BY workspace_id, session_id"
    everywhere = ["default-1", "default-3", "default-9", "long-1", "long-3", "long-9"]
    assert await swept.column(left) == [*everywhere, "short-1", "short-3", "short-9"]
    assert await swept.sweep("sessions_by_retention") == 2
    assert await swept.column(left) == [*everywhere, "short-1"]
    assert await swept.sweep("sessions") == await swept.sweep("sessions_by_retention") == 0


async def test_sessions_of_a_purged_workspace_are_forgotten_at_once(swept: Swept) -> None:
    for workspace in ("purged", "deleted", "kept"):
        await put_workspace(swept, workspace, session_days=100 if workspace == "purged" else 0)
        await put_session(swept, workspace, workspace, days=0)
    gone = "UPDATE registry.workspaces SET deleted_at = now(), purge_at = now() WHERE workspace_id IN ('purged', 'deleted')"
    await swept.owner.execute(gone)
    await swept.owner.execute("UPDATE registry.workspaces SET purged_at = now() WHERE workspace_id = 'purged'")
    assert await swept.sweep("sessions_by_retention") == 1
    assert await swept.column("SELECT session_id FROM registry.sessions ORDER BY session_id") == ["deleted", "kept"]


async def test_sessions_go_a_bounded_number_at_a_time_and_sweepers_share_them(swept: Swept) -> None:
    await put_workspace(swept, "short", session_days=3)
    for index in range(30):
        await put_session(swept, "short", f"s{index}", days=20 if index % 2 else 5)
    assert await swept.sweep("sessions", 4) == 4
    assert await swept.sweep("sessions_by_retention", 4) == 4
    counts = await asyncio.gather(*(swept.sweep(what, 3) for what in ("sessions", "sessions_by_retention") * 10))
    assert max(counts) <= 3
    assert sum(counts) + 8 == 30 - await swept.owner.fetchval("SELECT count(*) FROM registry.sessions")


async def put_pod(swept: Swept, pod: str, *, seen_days: int, dead_days: int | None = None) -> None:
    await swept.owner.execute(
        "INSERT INTO registry.pods (pod_id, address, epoch, number, state, registered_at, seen_at, dead_at, dead_reason)"
        " VALUES ($1, '', 1, 1, CASE WHEN $3::int IS NULL THEN 'live' ELSE 'dead' END, now(),"
        " now() - make_interval(days => $2, mins => 1), now() - make_interval(days => $3, mins => 1), '')",
        pod,
        seen_days,
        dead_days,
    )


async def test_pods_that_nobody_asks_about_are_given_up_and_dead_ones_forgotten(swept: Swept) -> None:
    await put_pod(swept, "asked", seen_days=4)
    await put_pod(swept, "silent", seen_days=5)
    await put_pod(swept, "dead", seen_days=50, dead_days=4)
    await put_pod(swept, "long dead", seen_days=50, dead_days=5)
    assert await swept.sweep("silent_pods") == 1
    assert await swept.sweep("dead_pods") == 1
    states = await swept.column("SELECT pod_id || ' ' || state || ' ' || marked_by FROM registry.pods ORDER BY pod_id")
    assert states == ["asked live ", "dead dead ", "silent dead registry"]
    assert await swept.sweep("silent_pods") == await swept.sweep("dead_pods") == 0


async def test_answers_of_all_workspaces_are_forgotten(swept: Swept) -> None:
    await swept.owner.execute(
        "INSERT INTO registry.requests (workspace_id, request_id, rpc, body_hash, answer, created_at)"
        " SELECT 'w' || i % 3, 'r' || i, 'X', '', '', now() - make_interval(hours => i) FROM generate_series(1, 30) i"
    )
    assert await swept.sweep("answers", 2) == 2
    assert await swept.sweep("answers") == 4
    assert await swept.owner.fetchval("SELECT max(now() - created_at) < interval '25 hours' FROM registry.requests")


async def test_a_row_that_somebody_holds_is_left_for_another_time(swept: Swept) -> None:
    await put_workspace(swept, "w")
    for index in range(3):
        await put_session(swept, "w", f"s{index}", days=20)
    other = await asyncpg.connect(swept.settings.owner_url.get_secret_value())
    async with other.transaction():
        await other.execute("UPDATE registry.sessions SET pod_number = 2 WHERE session_id = 's1'")
        assert await asyncio.wait_for(swept.sweep("sessions"), 30) == 2
    assert await swept.sweep("sessions") == 1
    await other.close()


async def test_one_that_fails_holds_up_no_other_and_is_told_once() -> None:
    runs: list[str] = []

    async def fails(_: int) -> int:
        runs.append("fails")
        raise StoreUnavailable("away", retry_after_s=1.0)

    async def works(most: int) -> int:
        runs.append("works")
        return most if runs.count("works") < 3 else 0

    sweeps = Sweeps([Sweep("first", fails), Sweep("second", works, every=2)], metrics := CollectorRegistry())
    with structlog.testing.capture_logs() as logged:
        for _ in range(2):
            await sweeps.round()
    assert runs == ["fails", "works", "works", "works", "fails"]
    assert [(entry["event"], entry["what"]) for entry in logged] == [("a sweep waits", "first")]
    assert metrics.get_sample_value("twofold_registry_swept_total", {"what": "second"}) == 2 * AT_ONCE
    assert metrics.get_sample_value("twofold_registry_swept_total", {"what": "first"}) == 0
    failures = [
        metrics.get_sample_value("twofold_registry_sweep_failures_total", {"what": what}) for what in ("first", "second")
    ]
    assert failures == [2, 0]


async def test_a_failure_is_told_anew_when_it_had_gone_well() -> None:
    outcomes = iter([RuntimeError("one"), RuntimeError("two"), None, RuntimeError("three")])

    async def run(_: int) -> int:
        if error := next(outcomes):
            raise error
        return 0

    sweeps = Sweeps([Sweep("it", run)], CollectorRegistry())
    with structlog.testing.capture_logs() as logged:
        for _ in range(4):
            await sweeps.round()
    assert [str(entry["exc_info"]) for entry in logged] == ["one", "three"]


async def test_a_registry_sweeps_by_itself_and_its_metrics_are_explained(swept: Swept) -> None:
    await put_pod(swept, "long dead", seen_days=50, dead_days=50)
    await put_changes(swept, [90_000, 80_000])

    async def all_is_swept() -> bool:
        return await history(swept) == (1, [2]) and not await swept.column("SELECT pod_id FROM registry.pods")

    async with registry(settings_of(swept.settings, sweep_period_s=0.05, metrics_port=0)) as running:
        await until(all_is_swept)
        assert running.metrics_port is not None
        samples = await scraped(running.metrics_port)
    whats = {dict(labels)["what"] for name, labels in samples if name == "twofold_registry_swept_total"}
    assert whats >= swept.sweeps().keys()
    page = OPERATIONS.read_text(encoding="utf-8")
    assert all(f"`{name}_total{{what}}`" in page for name in ("twofold_registry_swept", "twofold_registry_sweep_failures"))
    assert all(f"`{what}`" in page for what in whats)
