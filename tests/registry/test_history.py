"""Revisions and the audit: no change without its entry, no entry without its change, no gap between them."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
import structlog.testing

from tests.databases import settings_of_database
from tests.registry.stubs import Answered, Connection, Registry, refused, settings_of
from tests.registry.test_requests import WRITES, furnish, write
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_registry.app import registry
from twofold_registry.revisions import revision_of

WRITERS = 50
AGENTS_OF_A_WRITER = 40
SEEN = """
    SELECT (SELECT revision FROM registry.registry_head) AS head,
        (SELECT array_agg(DISTINCT revision ORDER BY revision) FROM registry.audit_entries) AS audited,
        (SELECT count(*) FROM registry.audit_entries) AS entries
"""
STATE = """
    SELECT (SELECT revision FROM registry.registry_head) AS head,
        (SELECT count(*) FROM registry.audit_entries) AS entries,
        (SELECT count(*) FROM registry.requests) AS requests,
        (SELECT array_agg(w::text ORDER BY w.workspace_id) FROM registry.workspaces w) AS workspaces,
        (SELECT array_agg(u::text ORDER BY u.workspace_id, u.user_id) FROM registry.users u) AS users,
        (SELECT array_agg(a::text ORDER BY a.workspace_id, a.agent_id) FROM registry.agents a) AS agents,
        (SELECT array_agg(g::text ORDER BY g.workspace_id, g.user_id, g.agent_id) FROM registry.grants g) AS grants
"""


def number(token: bytes) -> int:
    revision = revision_of(token, "token")
    assert revision is not None
    return revision.number


async def look(owner: Connection, statement: str) -> asyncpg.Record:
    row = await owner.fetchrow(statement)
    assert row is not None
    return row


async def rename(api: Registry, agent: agent_pb2.Agent) -> agent_pb2.UpdateAgentResponse:
    request = agent_pb2.UpdateAgentRequest(agent=agent)
    request.update_mask.paths.append("display_name")
    return await api.agents.UpdateAgent(request)


async def writes_of_one(api: Registry, workspace_id: str, agent_id: str) -> list[int]:
    """The revisions that one writer was told, in the order in which it was told them."""
    draft = agent_pb2.Agent(workspace_id=workspace_id, agent_id=agent_id, display_name="A", url="http://a.svc.cluster.local")
    created = await api.agents.CreateAgent(agent_pb2.CreateAgentRequest(agent=draft))
    updated = await rename(api, created.agent)
    again = await rename(api, updated.agent)
    return [number(answer.revision_token) for answer in (created, updated, again)]


async def test_fifty_writers_leave_no_gap_and_no_reader_ever_sees_one(api: Registry, owner: Connection) -> None:
    workspaces = [(await api.make_workspace("")).workspace_id for _ in range(5)]
    before = (await look(owner, SEEN))["head"]
    writers = [asyncio.create_task(writes_of_one(api, workspaces[index % 5], f"agent-{index}")) for index in range(WRITERS)]
    looks = 0
    while not all(task.done() for task in writers):
        seen = await look(owner, SEEN)
        # What is visible is always a beginning of the history: no revision is committed before an earlier one.
        assert seen["audited"] == list(range(1, seen["head"] + 1))
        looks += 1
    told = [task.result() for task in writers]
    assert looks >= 5
    assert all(revisions == sorted(revisions) for revisions in told)
    assert sorted(itertools.chain(*told)) == list(range(before + 1, before + 1 + 3 * WRITERS))


async def test_times_follow_the_order_of_revisions(owner: Connection) -> None:
    rows = await owner.fetch("SELECT created_at FROM registry.audit_entries ORDER BY revision")
    times = [row["created_at"] for row in rows]
    assert times == sorted(times)


async def test_a_change_waits_for_others_only_briefly_and_reads_do_not_wait(
    api: Registry, owner: Connection, workspace: str
) -> None:
    await api.make_agent(workspace, "helper")
    async with owner.transaction():
        await owner.execute("UPDATE registry.registry_head SET revision = revision")
        with refused(grpc.StatusCode.ABORTED, Reason.REASON_BUSY):
            await api.make_user(workspace, "ann")
        assert not (await api.check(workspace, "ann", "helper")).allowed
    await api.make_user(workspace, "ann")


async def test_changes_need_no_prepared_statements(api: Registry, database_settings: DatabaseSettings) -> None:
    pooled = database_settings.model_copy(update={"prepared_statements": False})
    async with (
        registry(settings_of(pooled)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        behind_a_pooler = Registry(channel)
        workspace_id = (await behind_a_pooler.make_workspace("")).workspace_id
        for rpc in ("CreateUser", "CreateAgent", "UpdateWorkspace", "DeleteWorkspace"):
            await write(behind_a_pooler, rpc, workspace_id, rpc)()
        assert len(await behind_a_pooler.trail(workspace_id)) == 5


@pytest.fixture
async def refused_audit(owner: Connection) -> AsyncIterator[str]:
    """The name of an actor whose audit entries the database does not take."""
    await owner.execute(
        "ALTER TABLE registry.audit_entries ADD CONSTRAINT none_of_the_doomed CHECK (actor <> 'doomed') NOT VALID"
    )
    yield "doomed"
    await owner.execute("ALTER TABLE registry.audit_entries DROP CONSTRAINT none_of_the_doomed")


class Acting:
    """Calls in the name of an actor."""

    def __init__(self, stub: Any, actor: str) -> None:
        self._stub = stub
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stub, name)
        return lambda request: method(request, metadata=(("twofold-actor", self._actor),))


@pytest.mark.parametrize("rpc", WRITES)
async def test_a_change_whose_audit_entry_cannot_be_written_does_not_happen(
    api: Registry, owner: Connection, workspace: str, refused_audit: str, rpc: str
) -> None:
    await furnish(api, workspace)
    doomed: Any = Registry.__new__(Registry)
    for name, stub in vars(api).items():
        setattr(doomed, name, Acting(stub, refused_audit))
    before = await look(owner, STATE)
    with structlog.testing.capture_logs(), refused(grpc.StatusCode.INTERNAL, Reason.REASON_INTERNAL):
        await write(doomed, rpc, workspace, "r1")()
    assert await look(owner, STATE) == before
    await write(api, rpc, workspace, "r1")()
    after = await look(owner, STATE)
    assert (after["head"], after["entries"], after["requests"]) == (
        before["head"] + 1,
        before["entries"] + 1,
        before["requests"] + 1,
    )


async def create_many(api: Registry, workspace_id: str, writer: int, answered: Answered) -> None:
    for index in range(AGENTS_OF_A_WRITER):
        await answered.insist(write(api, "CreateAgent", workspace_id, f"{writer}-{index}"))


async def test_after_a_kill_of_postgres_every_repeated_write_has_happened_once(own_postgres: EmbeddedPostgres) -> None:
    database = settings_of_database(own_postgres, pool_size_max=5)
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(registry(settings_of(database)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{running.port}"))
        api = Registry(channel)
        workspace_id = (await api.make_workspace("")).workspace_id

        answered = Answered()
        writers = [asyncio.create_task(create_many(api, workspace_id, writer, answered)) for writer in range(6)]
        await answered.progress(AGENTS_OF_A_WRITER)
        assert not all(task.done() for task in writers)
        await own_postgres.kill()
        await own_postgres.start()
        await asyncio.gather(*writers)

    owner = await asyncpg.connect(own_postgres.owner_url)
    seen = await look(owner, SEEN)
    agents = await owner.fetchval("SELECT count(*) FROM registry.agents")
    await owner.close()
    assert agents == 6 * AGENTS_OF_A_WRITER
    assert seen["audited"] == list(range(1, agents + 2))
    assert seen["head"] == seen["entries"] == agents + 1
