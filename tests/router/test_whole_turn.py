"""One message through all three rooms as they really are, on real Postgres and Redis, to an agent over HTTP."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from aiohttp import web
from google.protobuf.timestamp_pb2 import Timestamp

from tests.router.conftest import METADATA, Client, Turn, answered, refused
from tests.router.scripted import Heard, ScriptedAgents, delta, finish
from twofold.memory.v1 import conversation_pb2, conversation_pb2_grpc, message_pb2, preference_pb2, preference_pb2_grpc
from twofold.registry.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    permission_pb2,
    permission_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
    user_pb2,
    user_pb2_grpc,
    workspace_pb2,
    workspace_pb2_grpc,
)
from twofold.router.v1 import routing_pb2, turn_pb2
from twofold_chassis.settings import DatabaseSettings, RedisSettings
from twofold_cli.demo_agent import DemoAgent, serving
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_memory.app import memory
from twofold_memory.settings import MemorySettings
from twofold_memory.settings import Settings as MemoryRoom
from twofold_registry.app import registry
from twofold_registry.settings import RegistrySettings
from twofold_registry.settings import Settings as RegistryRoom
from twofold_router.app import router
from twofold_router.settings import RouterSettings, Settings

Code = grpc.StatusCode
# A machine that stands still for a second is no reason to ask the registry.
LEASE_MS = 5_000
INTERRUPTED = message_pb2.MESSAGE_STATUS_INTERRUPTED


@dataclass
class House:
    """The three rooms, and what a test asks of them."""

    client: Client
    registry: grpc.aio.Channel
    memory: grpc.aio.Channel
    workspace_id: str
    settings: Settings
    agent: DemoAgent

    @contextlib.asynccontextmanager
    async def another_router(self) -> AsyncIterator[Client]:
        async with router(self.settings) as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            yield Client(channel)

    async def grant(self, user_id: str, agent_id: str = "agent") -> bytes:
        grant = permission_pb2.AgentGrant(workspace_id=self.workspace_id, user_id=user_id, agent_id=agent_id)
        stub = permission_pb2_grpc.PermissionServiceStub(self.registry)
        return (await stub.Grant(permission_pb2.GrantRequest(grant=grant))).revision_token

    async def revoke(self, user_id: str, agent_id: str = "agent") -> permission_pb2.RevokeResponse:
        """Returns when no router answers from before."""
        request = permission_pb2.RevokeRequest(
            workspace_id=self.workspace_id,
            user_id=user_id,
            agent_id=agent_id,
            wait=permission_pb2.REVOKE_WAIT_ALL_ROUTERS,
        )
        return await permission_pb2_grpc.PermissionServiceStub(self.registry).Revoke(request)

    async def messages(self, thread_id: str) -> list[message_pb2.Message]:
        stub = conversation_pb2_grpc.ConversationServiceStub(self.memory)
        request = conversation_pb2.ListMessagesRequest(workspace_id=self.workspace_id, thread_id=thread_id)
        return list((await stub.ListMessages(request)).messages)

    async def usage(self) -> usage_pb2.GetUsageResponse:
        now = datetime.now(UTC)
        start, end = Timestamp(), Timestamp()
        start.FromDatetime(now - timedelta(hours=1))
        end.FromDatetime(now + timedelta(hours=1))
        stub = usage_pb2_grpc.UsageServiceStub(self.registry)
        return await stub.GetUsage(usage_pb2.GetUsageRequest(workspace_id=self.workspace_id, start_time=start, end_time=end))

    async def prefer(self, user_id: str, **preferences: str) -> None:
        request = preference_pb2.UpdatePreferencesRequest(workspace_id=self.workspace_id, user_id=user_id, set=preferences)
        await preference_pb2_grpc.PreferenceServiceStub(self.memory).UpdatePreferences(request)


async def furnish(channel: grpc.aio.Channel, workspace_id: str, url: str) -> None:
    """A workspace with the users ada, bob and boss (an owner) and the agents "agent" and "paused"."""
    workspace = workspace_pb2.Workspace(workspace_id=workspace_id, display_name="Acme")
    await workspace_pb2_grpc.WorkspaceServiceStub(channel).CreateWorkspace(
        workspace_pb2.CreateWorkspaceRequest(workspace=workspace), metadata=METADATA
    )
    for user_id, role in (("ada", user_pb2.ROLE_MEMBER), ("bob", user_pb2.ROLE_MEMBER), ("boss", user_pb2.ROLE_OWNER)):
        user = user_pb2.User(
            workspace_id=workspace_id, user_id=user_id, email=f"{user_id}@example.com", display_name=user_id, role=role
        )
        await user_pb2_grpc.UserServiceStub(channel).CreateUser(user_pb2.CreateUserRequest(user=user))
    for agent_id, state in (("agent", agent_pb2.AGENT_STATE_PUBLISHED), ("paused", agent_pb2.AGENT_STATE_PAUSED)):
        agent = agent_pb2.Agent(workspace_id=workspace_id, agent_id=agent_id, display_name=agent_id, url=url, state=state)
        await agent_pb2_grpc.AgentServiceStub(channel).CreateAgent(agent_pb2.CreateAgentRequest(agent=agent))


@pytest.fixture
async def house(database_settings: DatabaseSettings, own_redis: EmbeddedRedis, workspace_id: str) -> AsyncIterator[House]:
    redis = RedisSettings(host=own_redis.host, port=own_redis.port, password=own_redis.password, budget_ms=200)
    async with AsyncExitStack() as stack:
        agent = DemoAgent(allow_faults=True)
        url = await stack.enter_async_context(serving(agent))
        store = RegistrySettings(port=0, allow_loopback_urls=True, lease_ms=LEASE_MS)
        rooms = (
            registry(RegistryRoom(database=database_settings, registry=store)),
            memory(MemoryRoom(database=database_settings, redis=redis, memory=MemorySettings(port=0))),
        )
        targets = [f"127.0.0.1:{(await stack.enter_async_context(room)).port}" for room in rooms]
        options = RouterSettings(
            port=0,
            registry_target=targets[0],
            memory_target=targets[1],
            lease_ms=LEASE_MS,
            silence_ms=LEASE_MS // 2,
            allow_loopback_urls=True,
        )
        settings = Settings(redis=redis, router=options)
        running = await stack.enter_async_context(router(settings))
        targets.append(f"127.0.0.1:{running.port}")
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(target)) for target in targets]
        await furnish(channels[0], workspace_id, url)
        yield House(Client(channels[2]), channels[0], channels[1], workspace_id, settings, agent)


async def test_a_conversation_goes_through_all_three_rooms_and_survives_its_redis(
    house: House, own_redis: EmbeddedRedis
) -> None:
    ws, client = house.workspace_id, house.client
    token = await house.grant("ada")
    await house.prefer("ada", preferred_language="Python")

    first = await client.turn(ws, "My name is Ada.", thread_id="t", operation_id="op-1", min_revision_token=token)
    assert first.text == "Nice to meet you, Ada."
    assert (first.completed.first_seq, first.completed.last_seq) == (1, 2)
    assert first.completed.usage_recorded
    assert first.started.route_source == routing_pb2.ROUTE_SOURCE_REGISTRY

    second = await client.turn(ws, "What is my name?", thread_id="t")
    assert second.text == "Your name is Ada."
    assert second.started.route_source == routing_pb2.ROUTE_SOURCE_PROCESS
    assert second.started.context_source == message_pb2.READ_SOURCE_L1
    assert (second.started.context_messages, second.started.context_preferences) == (2, 1)

    await own_redis.kill()
    # (Within the first lease of a router, it may let nothing pass by itself.)
    third = await answered(lambda: client.turn(ws, "Which language should I use?", thread_id="t", operation_id="op-3"))
    assert third.text == "You prefer Python."
    assert third.started.context_source == message_pb2.READ_SOURCE_L2
    assert third.started.context_completeness == message_pb2.COMPLETENESS_COMMITTED_ONLY

    again = await client.turn(ws, "My name is Ada.", thread_id="t", operation_id="op-1")
    assert again.started.replayed
    assert (again.text, again.completed.last_seq) == (first.text, 2)
    assert again.completed.finish_reason == first.completed.finish_reason == "stop"
    assert again.completed.usage_recorded

    said = [(message.content, message.author) for message in await house.messages("t")]
    assert said == [
        ("My name is Ada.", ""),
        ("Nice to meet you, Ada.", "agent"),
        ("What is my name?", ""),
        ("Your name is Ada.", "agent"),
        ("Which language should I use?", ""),
        ("You prefer Python.", "agent"),
    ]
    used, turns = await house.usage(), (first, second, third)
    assert (used.events, used.messages) == (3, 3)
    assert used.input_tokens == sum(turn.completed.input_tokens for turn in turns)
    assert used.output_tokens == sum(turn.completed.output_tokens for turn in turns)


async def test_the_rooms_refuse_together_as_each_does_alone(house: House) -> None:
    ws, client = house.workspace_id, house.client
    await house.grant("ada")
    await house.grant("ada", "paused")
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.turn(ws, user_id="bob")
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.turn("another-workspace")
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.turn(ws, agent_id="none")
    with refused(Code.NOT_FOUND, "REASON_AGENT_UNKNOWN"):
        await client.turn(ws, user_id="boss", agent_id="none")
    with refused(Code.FAILED_PRECONDITION, "REASON_AGENT_NOT_PUBLISHED"):
        await client.turn(ws, agent_id="paused")
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_TOKEN"):
        await client.turn(ws, min_revision_token=b"nonsense")
    await client.turn(ws, "Mine.", thread_id="t")
    with refused(Code.NOT_FOUND, "REASON_CONVERSATION_UNKNOWN"):
        await client.turn(ws, "And mine?", user_id="boss", thread_id="t")
    for fault in ("http 500", "bad json", "cut"):
        with refused(Code.UNAVAILABLE, "REASON_AGENT_FAILED") as told:
            await client.turn(ws, f"fault: {fault}", thread_id="t")
        assert told.metadata["outcome"] == "INTERRUPTED"
    said = [(message.content, message.status == INTERRUPTED) for message in await house.messages("t")]
    begun = next(text for text, _ in said[5:] if text.startswith("You said"))
    assert said[2:] == [
        ("fault: http 500", False),
        ("fault: bad json", False),
        (begun, True),
        ("fault: cut", False),
        (begun, True),
    ]


async def test_retries_that_cross_their_first_attempt_are_kept_and_counted_once(house: House) -> None:
    ws, client = house.workspace_id, house.client
    await house.grant("ada")

    async def insistent(router: Client) -> Turn:
        while True:
            try:
                return await router.turn(ws, "Hello.", thread_id="t", operation_id="op")
            except grpc.aio.AioRpcError as error:
                if error.code() not in (Code.ABORTED, Code.UNAVAILABLE):
                    raise
            await asyncio.sleep(0.02)

    async with house.another_router() as other:
        turns = await asyncio.gather(*(insistent((client, other)[number % 2]) for number in range(4)))
    assert {(turn.text, turn.completed.last_seq) for turn in turns} == {(turns[0].text, 2)}
    assert (await house.usage()).events == 1
    assert house.agent.requests == 1


async def test_an_agent_that_calls_tools_twice_gets_their_results_from_the_conversation_it_had(
    house: House, agents: ScriptedAgents
) -> None:
    ws, client = house.workspace_id, house.client

    async def counts_to_two(heard: Heard) -> web.StreamResponse:
        results = [message["content"] for message in heard.body["messages"] if message["role"] == "tool"]
        if len(results) == 2:
            return await heard.say(delta(f"They were {' and '.join(results)}."), finish())
        call = {"index": 0, "id": f"c{len(results)}", "function": {"name": "dice", "arguments": "{}"}}
        return await heard.say(delta("I throw. "), delta(tool_calls=[call]), finish("tool_calls"))

    agent = agent_pb2.Agent(
        workspace_id=ws, agent_id="gambler", display_name="Gambler", url=agents.agent("g", counts_to_two)
    )
    await agent_pb2_grpc.AgentServiceStub(house.registry).CreateAgent(agent_pb2.CreateAgentRequest(agent=agent))
    token = await house.grant("ada", "gambler")
    offered = {"agent_id": "gambler", "thread_id": "t", "tools": [turn_pb2.Tool(name="dice")]}
    first = await client.turn(ws, "Throw twice.", min_revision_token=token, **offered)
    assert [call.id for call in first.calls] == ["c0"]
    thrown = turn_pb2.ToolResult(tool_call_id="c0", content="four")
    second = await client.turn(ws, "", operation_id="second", tool_results=[thrown], **offered)
    assert [call.id for call in second.calls] == ["c1"]
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD"):
        await client.turn(ws, "", tool_results=[thrown], **offered)
    third = await client.turn(ws, "", tool_results=[turn_pb2.ToolResult(tool_call_id="c1", content="six")], **offered)
    assert third.text == "They were four and six."
    again = await client.turn(ws, "", operation_id="second", tool_results=[thrown], **offered)
    assert (again.started.replayed, again.calls) == (True, second.calls)
    roles = [message_pb2.Role.Name(message.role) for message in await house.messages("t")]
    assert roles == ["ROLE_USER", "ROLE_ASSISTANT", "ROLE_TOOL", "ROLE_ASSISTANT", "ROLE_TOOL", "ROLE_ASSISTANT"]


async def test_a_revoke_that_waits_for_all_routers_is_known_to_them_when_it_returns(house: House) -> None:
    ws, client = house.workspace_id, house.client
    for _ in range(5):
        token = await house.grant("ada")
        assert (await client.resolve(ws, min_revision_token=token)).url
        assert (await client.resolve(ws)).permission_source == routing_pb2.ROUTE_SOURCE_PROCESS
        revoked = await house.revoke("ada")
        assert (revoked.acked_routers, revoked.expired_routers) == (1, 0)
        with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
            await client.resolve(ws)
