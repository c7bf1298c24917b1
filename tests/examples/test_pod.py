"""The reference pod, as a process of its own, with real WebSocket clients and a browser that shows its page."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from tests.examples import browser
from tests.router.scripted import Handler, Heard, ScriptedAgents, delta, finish, scripted_agents, sse
from tests.router.test_whole_turn import furnish
from tests.waiting import until
from twofold.registry.v1 import permission_pb2
from twofold.registry.v1.permission_pb2_grpc import PermissionServiceStub
from twofold.router.v1.session_pb2 import ListLinkedPodsRequest, ListSessionsRequest, SendToSessionRequest, SessionsOf
from twofold.router.v1.session_pb2_grpc import SessionServiceStub
from twofold_chassis.settings import DatabaseSettings, RedisSettings
from twofold_memory.app import memory
from twofold_memory.settings import MemorySettings
from twofold_memory.settings import Settings as MemoryRoom
from twofold_registry.app import registry
from twofold_registry.settings import RegistrySettings
from twofold_registry.settings import Settings as RegistryRoom
from twofold_router.app import router
from twofold_router.settings import RouterSettings, Settings

POD = Path(__file__).parents[2] / "examples" / "pod" / "pod.py"
LEASE_MS = 20_000


@dataclass
class Gate:
    """A pod that runs as a process."""

    process: asyncio.subprocess.Process
    url: str

    @property
    def socket(self) -> str:
        return f"{self.url.replace('http', 'ws')}/ws"

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@dataclass
class Rooms:
    """The three rooms, agents that do as a test says, and pods in front, for all tests here."""

    agents: ScriptedAgents
    targets: list[str]
    channels: list[grpc.aio.Channel]
    http: aiohttp.ClientSession
    stack: AsyncExitStack
    gates: dict[str, Gate] = field(default_factory=dict)

    async def gate(self, pod_id: str) -> Gate:
        """The pod of this name, once it serves: started if there is none."""
        gate = self.gates.get(pod_id)
        if gate is None or gate.process.returncode is not None:
            gate = self.gates[pod_id] = await self._started(pod_id)
        await until(lambda: self._serves(gate), f"{pod_id} serves")
        return gate

    async def _started(self, pod_id: str) -> Gate:
        port = _free_port()
        arguments = ("--router", self.targets[2], "--memory", self.targets[1], "--port", str(port), "--pod-id", pod_id)
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(POD), *arguments, stdout=asyncio.subprocess.DEVNULL
        )
        self.stack.push_async_callback(_ended, process)
        return Gate(process, f"http://127.0.0.1:{port}")

    async def _serves(self, gate: Gate) -> bool:
        assert gate.process.returncode is None, "the pod has ended"
        try:
            async with self.http.get(f"{gate.url}/healthz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


@dataclass
class Street:
    """A workspace where "ada" may use the agent "agent"."""

    rooms: Rooms
    ws: str

    @property
    def sessions(self) -> SessionServiceStub:
        return SessionServiceStub(self.rooms.channels[2])

    async def gate(self, pod_id: str) -> Gate:
        return await self.rooms.gate(pod_id)

    async def held(self, user_id: str = "ada") -> list[str]:
        request = ListSessionsRequest(workspace_id=self.ws, user_id=user_id)
        return [session.pod_id for session in (await self.sessions.ListSessions(request, timeout=10)).sessions]

    async def grant(self) -> None:
        grant = permission_pb2.AgentGrant(workspace_id=self.ws, user_id="ada", agent_id="agent")
        await PermissionServiceStub(self.rooms.channels[0]).Grant(permission_pb2.GrantRequest(grant=grant), timeout=10)

    async def revoke(self) -> None:
        request = permission_pb2.RevokeRequest(workspace_id=self.ws, user_id="ada", agent_id="agent")
        await PermissionServiceStub(self.rooms.channels[0]).Revoke(request, timeout=10)

    def script(self, script: Handler) -> None:
        self.rooms.agents.agent(f"{self.ws}-agent", script)

    @property
    def heard(self) -> int:
        """How often the agent was asked."""
        path = f"/{self.ws}-agent/"
        return sum(heard.request.path.startswith(path) for heard in self.rooms.agents.heard)

    @contextlib.asynccontextmanager
    async def client(self, gate: Gate, user_id: str = "ada", thread: str = "t") -> AsyncIterator["Socket"]:
        async with self.rooms.http.ws_connect(gate.socket) as raw:
            hello = {"type": "hello", "workspace": self.ws, "user": user_id, "agent": "agent", "thread": thread}
            await raw.send_json(hello)
            yield Socket(raw)


class Socket:
    """A WebSocket to a pod."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.raw = socket

    async def say(self, text: str, operation: str) -> None:
        await self.raw.send_json({"type": "say", "operation": operation, "text": text})

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """The frames up to one of this type."""
        frames: list[dict[str, Any]] = []
        async with asyncio.timeout(60):
            while not frames or frames[-1]["type"] != kind:
                message = await self.raw.receive()
                assert message.type is aiohttp.WSMsgType.TEXT, (message, frames)
                frames.append(json.loads(message.data))
        return frames

    async def turn(self, text: str, operation: str) -> str:
        await self.say(text, operation)
        return "".join(frame["text"] for frame in await self.until("completed") if frame["type"] == "delta")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def _ended(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


@pytest.fixture(scope="module")
async def rooms(database_settings: DatabaseSettings, redis_settings: RedisSettings) -> AsyncIterator[Rooms]:
    async with AsyncExitStack() as stack:
        agents = await stack.enter_async_context(scripted_agents())
        store = RegistrySettings(port=0, allow_loopback_urls=True, lease_ms=LEASE_MS)
        first = (
            registry(RegistryRoom(database=database_settings, registry=store)),
            memory(MemoryRoom(database=database_settings, redis=redis_settings, memory=MemorySettings(port=0))),
        )
        targets = [f"127.0.0.1:{(await stack.enter_async_context(room)).port}" for room in first]
        options = RouterSettings(
            port=0,
            registry_target=targets[0],
            memory_target=targets[1],
            lease_ms=LEASE_MS,
            silence_ms=LEASE_MS // 2,
            pod_heartbeat_ms=100,
            pod_lease_ms=5000,
            allow_loopback_urls=True,
        )
        running = await stack.enter_async_context(router(Settings(redis=redis_settings, router=options)))
        targets.append(f"127.0.0.1:{running.port}")
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(target)) for target in targets]
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield Rooms(agents, targets, channels, http, stack)


@pytest.fixture
async def street(rooms: Rooms, workspace_id: str) -> Street:
    await furnish(rooms.channels[0], workspace_id, rooms.agents.agent(f"{workspace_id}-agent"))
    street = Street(rooms, workspace_id)
    await street.grant()
    return street


async def test_a_client_chats_through_the_pod_and_finds_the_conversation_again(street: Street) -> None:
    gate = await street.gate("gate-1")
    async with street.client(gate) as client:
        opened, history = await client.until("history")
        assert opened["pod"] == "gate-1"
        assert history["messages"] == []
        assert await street.held() == ["gate-1"]
        assert await client.turn("Ada", "op-1") == "Hello, Ada."
        assert await client.turn("Ada", "op-1") == "Hello, Ada.", "said again: answered again, and not asked again"
        assert street.heard == 1
    await until(lambda: _nobody(street), "the session of a client that has left is closed")
    async with street.client(gate) as client:
        _, history = await client.until("history")
        said = [(message["role"], message["text"]) for message in history["messages"]]
        assert said == [("user", "Ada"), ("assistant", "Hello, Ada.")]


async def test_who_may_not_use_the_agent_is_refused(street: Street) -> None:
    gate = await street.gate("gate-1")
    async with street.client(gate, "bob") as client:
        assert (await client.until("refused"))[-1]["message"] == "user 'bob' may not use agent 'agent'"
    assert await street.held("bob") == []


async def test_a_revoked_session_is_closed_and_says_why(street: Street) -> None:
    gate = await street.gate("gate-1")
    async with street.client(gate) as client:
        await client.until("history")
        await street.revoke()
        closed = (await client.until("closed"))[-1]
        assert (closed["reason"], "may not use this agent any more" in closed["message"]) == ("REVOKED", True)
        assert (await client.raw.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    assert await street.held() == []


async def test_what_is_sent_to_a_users_sessions_reaches_the_client(street: Street) -> None:
    gate = await street.gate("gate-1")
    async with street.client(gate) as client:
        await client.until("history")
        target = SessionsOf(user_id="ada", agent_id="agent")
        request = SendToSessionRequest(workspace_id=street.ws, sessions_of=target, payload=b"Your report is ready.")
        assert (await street.sessions.SendToSession(request, timeout=10)).sent == 1
        assert (await client.until("delivered"))[-1]["text"] == "Your report is ready."


async def test_an_answer_goes_on_without_its_pod_and_is_told_by_the_next(street: Street) -> None:
    first, second = await street.gate("gate-1"), await street.gate("gate-2")
    go_on = asyncio.Event()

    async def slow(heard: Heard) -> Any:
        response = await heard.stream()
        await response.write(sse(delta("Half ")))
        await go_on.wait()
        await response.write(sse(delta("and half.")) + sse(finish()) + b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    street.script(slow)
    async with street.client(first) as client:
        await client.until("history")
        await client.say("Tell me", "op-1")
        assert (await client.until("delta"))[-1]["text"] == "Half "
        await first.kill()
    async with street.client(second) as client:
        await client.until("history")
        await client.say("Tell me", "op-1")
        await client.until("started")
        go_on.set()
        told = [frame["text"] for frame in await client.until("completed") if frame["type"] == "delta"]
        assert "".join(told) == "Half and half."
    assert street.heard == 1, "the agent was asked once"


async def test_a_pod_that_ends_lets_its_clients_go_to_another_one(street: Street) -> None:
    gate_id = "gate-that-ends"
    gate = await street.gate(gate_id)
    async with street.client(gate) as client:
        await client.until("history")
        gate.process.send_signal(signal.SIGTERM)
        await client.until("moved")
    assert await gate.process.wait() == 0
    linked = await street.sessions.ListLinkedPods(ListLinkedPodsRequest(), timeout=10)
    assert gate_id not in [pod.pod_id for pod in linked.pods]
    assert await street.held() == []


async def test_what_is_no_hello_ends_the_connection(street: Street) -> None:
    gate = await street.gate("gate-1")
    for frame in ("", "[]", "{}", '{"type": "say"}', '{"type": "hello", "workspace": "w"}', "x" * 70_000):
        async with street.rooms.http.ws_connect(gate.socket) as client:
            await client.send_str(frame)
            message = await client.receive(timeout=30)
            assert message.type is aiohttp.WSMsgType.CLOSE, frame
    assert await street.held() == []


@pytest.mark.skipif(browser.found() is None, reason="there is no Chromium here")
async def test_the_page_chats_survives_the_kill_of_its_pod_and_shows_a_revoked_session(
    street: Street, tmp_path: Path
) -> None:
    first, second = await street.gate("gate-1"), await street.gate("gate-2")
    pictures = Path(os.environ.get("TWOFOLD_PICTURES", tmp_path))
    program = browser.found()
    assert program is not None
    async with browser.tab(program, tmp_path / "browser") as tab:
        thread = uuid.uuid4().hex
        pods = f"{first.socket},{second.socket}"
        await tab.open(f"{first.url}/?workspace={street.ws}&user=ada&agent=agent&thread={thread}&pods={pods}")
        await tab.until("document.getElementById('state').textContent == 'connected to gate-1'")
        await _say(tab, "Ada")
        await tab.until("document.querySelector('.assistant')?.textContent == 'Hello, Ada.'")
        await tab.picture(pictures / "chat.png")

        await first.kill()
        await tab.until("document.getElementById('state').textContent == 'connected to gate-2'")
        await tab.until("document.querySelectorAll('.said').length == 2")
        await _say(tab, "again")
        await tab.until("[...document.querySelectorAll('.assistant')].at(-1).textContent == 'Hello, again.'")
        await tab.picture(pictures / "after-the-kill.png")

        await street.revoke()
        await tab.until("document.getElementById('state').textContent == 'closed'")
        assert "may not use this agent any more" in await tab.js("document.querySelector('.note.bad').textContent")
        await tab.picture(pictures / "revoked.png")


async def _say(tab: browser.Tab, text: str) -> None:
    await tab.until("!document.getElementById('send').disabled")
    await tab.js(f"document.getElementById('text').value = {json.dumps(text)}; document.getElementById('send').click(); 1")


async def _nobody(street: Street) -> bool:
    return await street.held() == []
