"""A router that is killed in the middle of a turn, on the real rooms: no word is lost, and others go on with it."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web

from tests.databases import settings_of_database
from tests.router.conftest import Client, answered, refused
from tests.router.scripted import Heard, ScriptedAgents, delta, sse
from tests.router.test_turn_attach import Slowly, until_said
from tests.router.test_whole_turn import INTERRUPTED, LEASE_MS, House
from tests.router.test_whole_turn import house as house  # a fixture
from tests.waiting import until
from twofold.memory.v1 import turn_pb2, turn_pb2_grpc
from twofold.registry.v1 import agent_pb2, agent_pb2_grpc
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.service import ServiceProcess

Code = grpc.StatusCode


@pytest.fixture
async def database_settings(postgres_server: EmbeddedPostgres) -> DatabaseSettings:
    """A database of each test's own: routers that were killed stay registered for a while, and revokes wait for them."""
    return settings_of_database(await postgres_server.create_database(f"kills_{uuid.uuid4().hex[:8]}"))


@contextlib.asynccontextmanager
async def killable(house: House, folder: Path) -> AsyncIterator[tuple[ServiceProcess, Client]]:
    """A router of the house in a process of its own."""
    redis, options = house.settings.redis, house.settings.router
    environment = {
        "REDIS__HOST": redis.host,
        "REDIS__PORT": str(redis.port),
        "REDIS__PASSWORD": redis.password.get_secret_value() if redis.password else "",
        "REDIS__BUDGET_MS": "500",
        "ROUTER__REGISTRY_TARGET": options.registry_target,
        "ROUTER__MEMORY_TARGET": options.memory_target,
        "ROUTER__LEASE_MS": str(LEASE_MS),
        "ROUTER__SILENCE_MS": str(LEASE_MS // 2),
        "ROUTER__ALLOW_LOOPBACK_URLS": "true",
        "ROUTER__TURN_LEASE_S": "1.5",
        "ROUTER__ADVERTISE": "the-one-that-dies:1",
    }

    def with_ports() -> dict[str, str]:
        return environment | {"ROUTER__PORT": str(process.port), "ROUTER__METRICS_PORT": str(process.metrics_port)}

    process = ServiceProcess("router", folder / "router.log", with_ports)
    await process.start()
    try:
        async with grpc.aio.insecure_channel(process.target) as channel:
            yield process, Client(channel)
    finally:
        await process.kill()


async def moved(house: House, agents: ScriptedAgents) -> bytes:
    """Points the agent at the scripted ones; a token of that."""
    stub = agent_pb2_grpc.AgentServiceStub(house.registry)
    request = agent_pb2.UpdateAgentRequest(
        agent=agent_pb2.Agent(workspace_id=house.workspace_id, agent_id="agent", url=f"{agents.url}/agent")
    )
    request.update_mask.paths.append("url")
    return (await stub.UpdateAgent(request)).revision_token


async def test_of_a_turn_whose_router_was_killed_the_words_and_what_was_said_are_kept_as_interrupted(
    house: House, agents: ScriptedAgents, tmp_path: Path
) -> None:
    ws = house.workspace_id
    await house.grant("ada")
    token = await moved(house, agents)
    slowly = Slowly(agents)
    async with killable(house, tmp_path) as (process, client):
        running = client.run(ws, "My words.", thread_id="t", operation_id="op", keep_running=True, min_revision_token=token)
        await until_said(aiter(running), "öne")
        turns = turn_pb2_grpc.TurnServiceStub(house.memory)
        request = turn_pb2.GetOpenTurnRequest(workspace_id=ws, thread_id="t")

        async def kept_so_far() -> bool:
            found = await turns.GetOpenTurn(request)
            assert [message.content for message in found.messages] == ["My words."]
            return [message.content for message in found.partial_messages] == ["öne"]

        await until(kept_so_far)
        await process.kill()
        # Another router says who was at work, until the lease of the dead one has ended.
        with refused(Code.ABORTED, "REASON_BUSY") as told:
            await house.client.turn(ws, "My words.", thread_id="t", operation_id="op", min_revision_token=token)
        assert told.metadata["router"] == "the-one-that-dies:1"

    slowly.goes_on.set()

    async def goes_on() -> bool:
        try:
            turn = await house.client.turn(ws, "Once more.", thread_id="t")
        except grpc.aio.AioRpcError as error:
            if error.code() is not Code.ABORTED:
                raise
            return False
        return turn.text == "öne two"

    await until(goes_on)
    said = [(message.content, message.status == INTERRUPTED) for message in await house.messages("t")]
    assert said == [("My words.", False), ("öne", True), ("Once more.", False), ("öne two", False)]
    with refused(Code.ABORTED, "REASON_TURN_INTERRUPTED"):
        await house.client.turn(ws, "My words.", thread_id="t", operation_id="op")


async def test_an_operation_whose_router_was_killed_is_gone_on_with_by_another(
    house: House, agents: ScriptedAgents, tmp_path: Path
) -> None:
    async def hangs(heard: Heard) -> web.StreamResponse:
        response = await heard.stream()
        await response.write(sse(delta("Hel")))
        await Slowly(agents).goes_on.wait()
        return response

    ws = house.workspace_id
    await house.grant("ada")
    token = await moved(house, agents)
    agents.agent("agent", hangs)
    fields: dict[str, Any] = {"thread_id": "t", "operation_id": "op", "min_revision_token": token}
    async with killable(house, tmp_path) as (process, client):
        await until_said(aiter(client.run(ws, "Hello.", **fields)), "Hel")
        await process.kill()
    agents.agent("agent")

    async def gone_on() -> bool:
        try:
            turn = await house.client.turn(ws, "Hello.", **fields)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (Code.ABORTED, Code.UNAVAILABLE):
                raise
            return False
        assert (turn.text, turn.started.replayed) == ("Hello, Hello..", False)
        return True

    await until(gone_on)
    assert [message.content for message in await house.messages("t")] == ["Hello.", "Hello, Hello.."]
    assert (await house.usage()).events == 1
    assert (await answered(lambda: house.client.turn(ws, "Hello.", **fields))).started.replayed
