"""M19: a whole worker on a Redis Cluster: every script touches the keys of one slot, and a lost node costs speed only."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chassis.redis_servers import Server, cluster, settings_of
from tests.memory.rooms import CALL_S, Memory, said, serving, texts, thread
from tests.waiting import until
from twofold.memory.v1.conversation_pb2 import AppendTurnRequest, AppendTurnResponse
from twofold.memory.v1.message_pb2 import Completeness, Durability, ReadSource
from twofold.memory.v1.preference_pb2 import GetPreferencesRequest, UpdatePreferencesRequest
from twofold.memory.v1.sync_pb2 import AuditConversationsRequest, GetSyncStatusRequest, WindowState
from twofold_chassis.redis import open_link
from twofold_chassis.redis_cluster import slot_of
from twofold_chassis.settings import DatabaseSettings
from twofold_memory import keys
from twofold_memory.threads import ThreadKey

L1 = ReadSource.READ_SOURCE_L1
COMPLETE = Completeness.COMPLETENESS_COMPLETE
THREADS = 24


@pytest.fixture(scope="module")
async def nodes(servers_folder: Path) -> AsyncIterator[list[Server]]:
    async with cluster(servers_folder / f"memory-cluster-{uuid.uuid4().hex[:8]}") as nodes:
        yield nodes


@pytest.fixture
async def worker(memory_database: DatabaseSettings, nodes: list[Server]) -> AsyncIterator[Memory]:
    async with serving(memory_database, settings_of(nodes[0], cluster=True)) as memory:
        yield memory


@pytest.fixture
def threads(workspace_id: str) -> list[ThreadKey]:
    """Threads of all nodes."""
    made = [thread(workspace_id) for _ in range(THREADS)]
    slots = [slot_of(("LLEN", keys.thread_messages(key))) or 0 for key in made]
    assert {slot * 3 // 16384 for slot in slots} == {0, 1, 2}
    return made


async def journaled(worker: Memory, key: ThreadKey, *words: str) -> AppendTurnResponse:
    request = AppendTurnRequest(
        workspace_id=key.workspace_id,
        thread_id=key.thread_id,
        messages=said(*words),
        durability=Durability.DURABILITY_JOURNALED,
    )
    return await worker.conversations.AppendTurn(request, timeout=CALL_S)


async def test_windows_of_threads_on_all_nodes_are_kept_and_served(worker: Memory, threads: list[ThreadKey]) -> None:
    for number in range(2):
        await asyncio.gather(*(worker.append(key, f"q{number}", f"a{number}") for key in threads))

    async def warm() -> bool:
        return all(window.source == L1 for window in await asyncio.gather(*map(worker.read, threads)))

    await until(warm)
    for window in await asyncio.gather(*map(worker.read, threads)):
        assert (texts(window.messages), window.completeness) == (["q0", "a0", "q1", "a1"], COMPLETE)


async def test_windows_on_all_nodes_are_audited_and_repaired(
    worker: Memory, nodes: list[Server], threads: list[ThreadKey], workspace_id: str
) -> None:
    await asyncio.gather(*(worker.append(key, "q", "a") for key in threads))
    request = AuditConversationsRequest(workspace_id=workspace_id)
    found = await worker.sync.AuditConversations(request, timeout=CALL_S)
    assert [audit.window for audit in found.conversations] == [WindowState.WINDOW_STATE_EQUAL] * THREADS
    link = await open_link(settings_of(nodes[0], cluster=True))
    try:
        for key in threads:
            await link.call("HSET", keys.thread_head(key), "owner", "eve")
    finally:
        await link.close()
    found = await worker.sync.AuditConversations(
        AuditConversationsRequest(workspace_id=workspace_id, repair=True, only_findings=True), timeout=CALL_S
    )
    states = {(audit.window, audit.window_after) for audit in found.conversations}
    assert states == {(WindowState.WINDOW_STATE_DIFFERENT, WindowState.WINDOW_STATE_EQUAL)}
    assert len(found.conversations) == THREADS
    status = await worker.sync.GetSyncStatus(GetSyncStatusRequest(), timeout=CALL_S)
    assert (status.redis.answers, status.HasField("index")) == (True, True)


async def test_turns_are_journaled_on_all_nodes_and_reach_postgres_in_order(
    worker: Memory, threads: list[ThreadKey]
) -> None:
    answers = await asyncio.gather(*(journaled(worker, key, "q0", "a0") for key in threads))
    assert {answer.durability for answer in answers} == {Durability.DURABILITY_JOURNALED}
    await asyncio.gather(*(journaled(worker, key, "q1", "a1") for key in threads))

    async def stored() -> bool:
        return all(window.as_of_seq == 4 for window in await asyncio.gather(*map(worker.read, threads)))

    await until(stored)
    for messages in await asyncio.gather(*map(worker.all_messages, threads)):
        assert texts(messages) == ["q0", "a0", "q1", "a1"]


async def test_a_node_that_is_away_costs_its_threads_their_speed_and_nobody_else_anything(
    memory_database: DatabaseSettings, nodes: list[Server], threads: list[ThreadKey]
) -> None:
    async with serving(memory_database, settings_of(nodes[0], cluster=True, budget_ms=200)) as worker:
        await asyncio.gather(*(worker.append(key, "q0", "a0") for key in threads))
        nodes[2].pause()
        try:
            await asyncio.gather(*(worker.append(key, "q1", "a1") for key in threads))
            windows = await asyncio.gather(*map(worker.read, threads))
        finally:
            nodes[2].resume()
    for window in windows:
        assert texts(window.messages) == ["q0", "a0", "q1", "a1"]
        assert window.completeness in (COMPLETE, Completeness.COMPLETENESS_COMMITTED_ONLY)
    assert [window.source for window in windows].count(L1) > 0
    assert [window.completeness for window in windows].count(Completeness.COMPLETENESS_COMMITTED_ONLY) > 0


async def test_preferences_have_their_copy_on_a_cluster_too(worker: Memory, workspace_id: str, nodes: list[Server]) -> None:
    for number in range(6):
        update = UpdatePreferencesRequest(workspace_id=workspace_id, user_id=f"user-{number}", set={"tea": "green"})
        await worker.preferences.UpdatePreferences(update, timeout=CALL_S)
        read = GetPreferencesRequest(workspace_id=workspace_id, user_id=f"user-{number}")
        await worker.preferences.GetPreferences(read, timeout=CALL_S)
    found = [await node.asked("KEYS", f"user:{{{workspace_id}/*") for node in nodes]
    assert sum(map(len, found)) == 6
