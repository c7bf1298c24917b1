"""The whole house in this process: the three rooms on one Postgres and one Redis, as a client meets them."""

import asyncio
import base64
import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from pydantic import SecretStr

import twofold_memory.settings as memory_settings
import twofold_registry.settings as registry_settings
import twofold_router.settings as router_settings
from tests.databases import settings_of_database
from tests.house.contract import Rpc
from tests.house.examples import World
from twofold import Twofold
from twofold.memory.v1 import (
    checkpoint_pb2,
    conversation_pb2,
    erasure_pb2,
    message_pb2,
    preference_pb2,
    summary_pb2,
    tool_run_pb2,
)
from twofold.memory.v1 import turn_pb2 as memory_turn_pb2
from twofold.pod import PodLink
from twofold.registry.v1 import agent_pb2, billing_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold_chassis.settings import RedisSettings
from twofold_cli.embedded.postgres import DatabaseUrls, EmbeddedPostgres
from twofold_memory.app import memory
from twofold_memory.journaled import payload
from twofold_memory.threads import NewMessage, NewTurn, ThreadKey
from twofold_registry.app import registry
from twofold_router.app import router

CALL_S = 30.0
AUDIT_KEY = base64.b64encode(bytes(32)).decode()
NOBODY_LISTENS = "http://127.0.0.1:1"


@dataclass(frozen=True)
class House:
    """The rooms that are up: a client of them all, the address of each, and the database beneath them."""

    client: Twofold
    targets: dict[str, str]
    database: DatabaseUrls
    channels: dict[str, grpc.aio.Channel]
    pod: PodLink

    async def call(self, rpc: Rpc, request: Any) -> grpc.aio.AioRpcError | None:
        """Calls without any of the client's own habits; None if it went well."""
        channel = self.channels[rpc.room]
        make: Callable[..., Any] = channel.unary_stream if rpc.streams else channel.unary_unary
        if rpc.takes_stream:
            assert rpc.streams
            make, request = channel.stream_stream, iter([request])
        called = make(rpc.path, rpc.request.SerializeToString, rpc.response.FromString)(request, timeout=CALL_S)
        try:
            if rpc.streams:
                async for _ in called:
                    pass
            else:
                await called
        except grpc.aio.AioRpcError as error:
            return error
        return None

    async def contents(self) -> dict[str, str]:
        """A fingerprint of each table of the services."""
        connection = await asyncpg.connect(self.database.superuser)
        try:
            tables = await connection.fetch(
                "SELECT format('%I.%I', table_schema, table_name) AS name FROM information_schema.tables"
                " WHERE table_schema IN ('registry', 'memory') AND table_type = 'BASE TABLE'"
                # These two the service fills and empties by itself, whenever it comes to it; in the third one the router
                # of the house renews its registration and acknowledges what it has heard; to the last it tells, some time
                # later, what becomes of sessions.
                " AND table_name NOT IN ('search_entries', 'search_pending', 'watchers', 'sessions')"
            )
            # (Likewise when a retention is looked at next.)
            query = "SELECT md5(coalesce(string_agg((to_jsonb(t) - 'due_at')::text, '' ORDER BY t::text), '')) FROM {} t"
            return {row["name"]: await connection.fetchval(query.format(row["name"])) for row in tables}
        finally:
            await connection.close()


@pytest.fixture(scope="session")
async def house(postgres_server: EmbeddedPostgres, redis_settings: RedisSettings) -> AsyncIterator[House]:
    """One for the session, on a database of its own, so that what is stored there can be counted."""
    urls = await postgres_server.create_database("house")
    database = settings_of_database(urls)
    async with contextlib.AsyncExitStack() as stack:
        registry_room = await stack.enter_async_context(
            registry(
                registry_settings.Settings(
                    database=database,
                    registry=registry_settings.RegistrySettings(
                        port=0, allow_loopback_urls=True, drain_s=0, audit_signing_key=SecretStr(AUDIT_KEY)
                    ),
                )
            )
        )
        memory_room = await stack.enter_async_context(
            memory(
                memory_settings.Settings(
                    database=database, redis=redis_settings, memory=memory_settings.MemorySettings(port=0, drain_s=0)
                )
            )
        )
        peers = {"registry": f"127.0.0.1:{registry_room.port}", "memory": f"127.0.0.1:{memory_room.port}"}
        router_room = await stack.enter_async_context(
            router(
                router_settings.Settings(
                    redis=redis_settings,
                    # Between two tests nobody is served: a stream that is silent then is not lost.
                    router=router_settings.RouterSettings(
                        port=0,
                        registry_target=peers["registry"],
                        memory_target=peers["memory"],
                        drain_s=0,
                        lease_ms=60_000,
                        silence_ms=60_000,
                        usage_sweep_s=3600,  # what is owed here is recorded in no test's midst
                        allow_loopback_urls=True,
                        pod_lease_ms=600_000,
                    ),
                )
            )
        )
        targets = peers | {"router": f"127.0.0.1:{router_room.port}"}
        channels = {
            room: await stack.enter_async_context(grpc.aio.insecure_channel(target, options=[("grpc.enable_retries", 0)]))
            for room, target in targets.items()
        }
        client = await stack.enter_async_context(
            Twofold(registry=targets["registry"], memory=targets["memory"], router=targets["router"], actor="house")
        )
        pod = await stack.enter_async_context(
            PodLink([targets["router"]], pod_id=World.pod_id, delivered=_ignored, closed=_ignored)
        )
        yield House(client, targets, urls, channels, pod)


async def _ignored(*_: object) -> None:
    """What a pod is told."""


@pytest.fixture
async def world(house: House) -> AsyncIterator[World]:
    """A workspace of this test's own with a user, an agent, a grant, a conversation and a preference."""
    world = World(f"ws-{uuid.uuid4().hex[:12]}")
    client = house.client
    await client.workspaces.CreateWorkspace(
        workspace_pb2.CreateWorkspaceRequest(
            workspace=workspace_pb2.Workspace(workspace_id=world.workspace_id, display_name="Acme")
        )
    )
    await client.users.CreateUser(
        user_pb2.CreateUserRequest(
            user=user_pb2.User(workspace_id=world.workspace_id, user_id=world.user_id, email="ada@example.com")
        )
    )
    await client.agents.CreateAgent(
        agent_pb2.CreateAgentRequest(
            agent=agent_pb2.Agent(
                workspace_id=world.workspace_id, agent_id=world.agent_id, display_name="Helper", url=NOBODY_LISTENS
            )
        )
    )
    await client.permissions.Grant(
        permission_pb2.GrantRequest(
            grant=permission_pb2.AgentGrant(workspace_id=world.workspace_id, user_id=world.user_id, agent_id=world.agent_id)
        )
    )
    hello = message_pb2.Message(role=message_pb2.Role.ROLE_USER, content="Hello")
    await client.conversations.AppendTurn(
        conversation_pb2.AppendTurnRequest(
            workspace_id=world.workspace_id,
            thread_id=world.thread_id,
            user_id=world.user_id,
            request_id=world.turn_id,
            messages=[hello],
        )
    )
    await client.preferences.UpdatePreferences(
        preference_pb2.UpdatePreferencesRequest(
            workspace_id=world.workspace_id, user_id=world.user_id, set={"preferred_language": "Python"}
        )
    )
    await client.billing.CloseMonth(billing_pb2.CloseMonthRequest(workspace_id=world.workspace_id, month=world.closed_month))
    await _deleted(client, world)
    await _erased(client, world)
    await _records(client, world)
    await _dead_letter(house, world)
    held = [
        await house.pod.open(world.workspace_id, user_id=world.user_id, agent_id=world.agent_id, timeout_s=CALL_S)
        for _ in range(2)
    ]
    world = dataclasses.replace(world, session_id=held[0].session_id, closing_session_id=held[1].session_id)
    await client.open_turns.BeginTurn(
        memory_turn_pb2.BeginTurnRequest(
            workspace_id=world.workspace_id,
            thread_id=world.open_thread_id,
            user_id=world.user_id,
            request_id=world.open_turn_id,
            messages=[hello],
            lease_duration=Duration(seconds=900),  # longer than all tests: when it ends, what was said is stored
        )
    )
    await client.conversations.AppendTurn(
        conversation_pb2.AppendTurnRequest(
            workspace_id=world.workspace_id,
            thread_id=world.answered_thread_id,
            user_id=world.user_id,
            request_id=world.turn_id,
            messages=[hello, message_pb2.Message(role=message_pb2.Role.ROLE_ASSISTANT, content="Hello, Ada")],
        )
    )
    yield world
    await _closed(client, world)


async def _closed(client: Twofold, world: World) -> None:
    """What a turn has left open (its agent is nowhere) memory would close by itself, in the middle of another test."""
    open_turn = memory_turn_pb2.GetOpenTurnRequest(workspace_id=world.workspace_id, thread_id=world.thread_id)
    with contextlib.suppress(grpc.aio.AioRpcError):
        await client.open_turns.GetOpenTurn(open_turn)
        hello = message_pb2.Message(role=message_pb2.Role.ROLE_USER, content="Hello")
        named: dict[str, Any] = {"workspace_id": world.workspace_id, "thread_id": world.thread_id}
        begun = await client.open_turns.BeginTurn(
            memory_turn_pb2.BeginTurnRequest(
                **named, messages=[hello], policy=memory_turn_pb2.TurnPolicy.TURN_POLICY_TAKE_OVER
            )
        )
        await client.open_turns.AbortTurn(
            memory_turn_pb2.AbortTurnRequest(**named, turn_id=begun.turn_id, fence=begun.fence)
        )


async def _deleted(client: Twofold, world: World) -> None:
    """A user, an agent and a workspace that are deleted."""
    user = user_pb2.User(workspace_id=world.workspace_id, user_id=world.deleted_user_id, role=user_pb2.Role.ROLE_SERVICE)
    agent = agent_pb2.Agent(
        workspace_id=world.workspace_id, agent_id=world.deleted_agent_id, display_name="Gone", url=NOBODY_LISTENS
    )
    workspace = workspace_pb2.Workspace(workspace_id=world.deleted_workspace_id, display_name="Gone")
    await asyncio.gather(
        client.users.CreateUser(user_pb2.CreateUserRequest(user=user)),
        client.agents.CreateAgent(agent_pb2.CreateAgentRequest(agent=agent)),
        client.workspaces.CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(workspace=workspace)),
    )
    await asyncio.gather(
        client.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=user.workspace_id, user_id=user.user_id)),
        client.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(workspace_id=agent.workspace_id, agent_id=agent.agent_id)),
        client.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(workspace_id=workspace.workspace_id)),
    )


async def _dead_letter(house: House, world: World) -> None:
    """A turn that could not be stored."""
    messages = [NewMessage(2, "Too late", b"", None)]
    key = ThreadKey(world.workspace_id, world.thread_id)
    dead = NewTurn(key, None, world.dead_turn_id, bytes.fromhex(world.dead_payload_hash), messages, 8)
    connection = await asyncpg.connect(house.database.superuser)
    try:
        await connection.execute(
            "INSERT INTO memory.dead_letters (workspace_id, thread_id, turn_id, payload_hash, reason, payload)"
            " VALUES ($1, $2, $3, $4, 'INVALID', $5)",
            *key,
            dead.turn_id,
            dead.payload_hash,
            payload(dead),
        )
    finally:
        await connection.close()


async def _erased(client: Twofold, world: World) -> None:
    """An erasure that is done: nothing is changed by it any more."""
    wish = erasure_pb2.EraseUserRequest(
        workspace_id=world.workspace_id, user_id="somebody-else", erasure_id=world.erasure_id
    )
    erasure = (await client.erasures.EraseUser(wish)).erasure
    receipt = erasure_pb2.GetErasureRequest(workspace_id=world.workspace_id, erasure_id=world.erasure_id)
    async with asyncio.timeout(CALL_S):
        while erasure.state != erasure_pb2.ERASURE_STATE_DONE:
            await asyncio.sleep(0.05)
            erasure = (await client.erasures.GetErasure(receipt)).erasure


async def _records(client: Twofold, world: World) -> None:
    """A summary, a checkpoint, and tool runs in the states from which one may go on."""
    await client.summaries.PutSummary(
        summary_pb2.PutSummaryRequest(
            workspace_id=world.workspace_id,
            thread_id=world.thread_id,
            summary=summary_pb2.Summary(summary_id=world.summary_id, first_seq=1, last_seq=1, text="Hello was said."),
        )
    )
    await client.checkpoints.PutCheckpoint(
        checkpoint_pb2.PutCheckpointRequest(
            workspace_id=world.workspace_id,
            thread_id=world.thread_id,
            checkpoint=checkpoint_pb2.Checkpoint(checkpoint_id=world.checkpoint_id, line="plan", data=b"state"),
        )
    )
    runs, there = client.tool_runs, world.workspace_id
    for tool_run_id in (world.tool_run_id, world.running_tool_run_id, world.failed_tool_run_id):
        run = tool_run_pb2.ToolRun(workspace_id=there, tool_run_id=tool_run_id, name="clock")
        await runs.CreateToolRun(tool_run_pb2.CreateToolRunRequest(tool_run=run))
    for tool_run_id in (world.running_tool_run_id, world.failed_tool_run_id):
        await runs.ClaimToolRun(
            tool_run_pb2.ClaimToolRunRequest(workspace_id=there, tool_run_id=tool_run_id, version=1, holder="worker-1")
        )
    await runs.FailToolRun(
        tool_run_pb2.FailToolRunRequest(
            workspace_id=there, tool_run_id=world.failed_tool_run_id, version=2, attempt=1, error="no", retryable=True
        )
    )
