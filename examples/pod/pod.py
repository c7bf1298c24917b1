"""A pod of the control plane, for reference: WebSockets in, gRPC out.

    python examples/pod/pod.py --port 8080 --pod-id gate-1        # against `twofold up`; then open http://127.0.0.1:8080/

A page (page.html) has one WebSocket to one pod. They tell each other frames of JSON, each with its `type`:

    page → pod   hello {workspace, user, agent, thread}   first, and once
                 say {operation, text}                     again with the same operation: it is answered once
    pod → page   opened {session, pod}, history {messages}, started, delta {text}, completed {operation},
                 failed {operation, reason, message, again, retry_after_s}, delivered {text},
                 refused {message}, closed {reason, message}, moved   (to another pod, please)

What matters, and is easily done wrong:
- A session is served only while the pod holds it: that is looked at right before each frame (`PodLink.holds`).
- A pod that cannot hold its sessions any more, or is drained, lets its clients go to another one.
- A turn goes on without the pod that asked for it. Whoever has the client next says the same again under the same operation.
- Nothing grows with a slow client: it is cut off.

Who the user is this pod believes: put what your identity provider says in `_who`.
"""

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from aiohttp import WSMsgType, web

from twofold import Twofold, refusals
from twofold.client import MEMORY, ROUTER
from twofold.errors.v1.reason_pb2 import Reason
from twofold.memory.v1.conversation_pb2 import ReadWindowRequest
from twofold.memory.v1.message_pb2 import ROLE_ASSISTANT, ROLE_USER
from twofold.pod import HeldSession, PodLink, SessionRefused
from twofold.registry.v1.session_pb2 import SESSION_CLOSE_REASON_DRAINED
from twofold.router.v1.turn_pb2 import RunRequest, RunResponse

_PAGE = Path(__file__).with_name("page.html")
_FRAME_BYTES_MAX = 64 * 1024
_FRAMES_MAX = 256
_UNANSWERED_MAX = 4
_HELLO_S = 10.0
_SENDING_S = 10.0
_ALIVE_S = 20.0
_ROLES = {ROLE_USER: "user", ROLE_ASSISTANT: "assistant"}

# Worth another try under the same operation: nothing was refused, it could not be told.
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED)
_ENDED = (Reason.REASON_TURN_INTERRUPTED, Reason.REASON_TURN_SUPERSEDED, Reason.REASON_AGENT_FAILED)
_CLOSED = {
    "REVOKED": "You may not use this agent any more.",
    "IDLE": "Nothing was said for a long time.",
    "CLOSED_BY_OTHERS": "Somebody closed this session.",
}

Frame = dict[str, Any]


class _Who(NamedTuple):
    """Who is at the other end, and what about."""

    workspace: str
    user: str
    agent: str
    thread: str


class _Client:
    """One WebSocket. Frames wait for it in a bounded queue; who lets that fill up is cut off."""

    def __init__(self, socket: web.WebSocketResponse, who: _Who) -> None:
        self.socket = socket
        self.who = who
        self.session: HeldSession | None = None
        self.turn: asyncio.Task[None] | None = None
        self.unanswered = 0
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue(_FRAMES_MAX)

    def tell(self, **frame: Any) -> None:
        """Sends a frame when those before it are sent."""
        with contextlib.suppress(asyncio.QueueFull):
            self._frames.put_nowait(frame)
        if self._frames.full():
            self._cut()

    def end(self, **frame: Any) -> None:
        """Sends a last frame and hangs up."""
        self.tell(**frame)
        with contextlib.suppress(asyncio.QueueFull):
            self._frames.put_nowait(None)

    async def send(self, link: PodLink) -> None:
        """Sends what is told, until the end."""
        while (frame := await self._frames.get()) is not None:
            if self.session is not None and frame["type"] not in ("closed", "moved") and not link.holds(self.session):
                frame = {"type": "moved"}  # another pod may have it: not a word more from here
            async with asyncio.timeout(_SENDING_S):
                await self.socket.send_json(frame)
            if frame["type"] == "moved":
                break
        await self.socket.close()

    def _cut(self) -> None:
        transport = self.socket.get_extra_info("transport")
        if transport is not None:
            transport.abort()


class Pod:
    """The pod: its link, its way to the services, and its clients."""

    def __init__(self, routers: Sequence[str], memory: str, pod_id: str, address: str) -> None:
        self._pod_id = pod_id
        self._link = PodLink(
            routers,
            pod_id=pod_id,
            address=address,
            delivered=self._delivered,
            closed=self._closed,
            drain=self._drain,
            actor=f"pod:{pod_id}",
        )
        self._twofold = Twofold(router=routers[0], memory=memory, actor=f"pod:{pod_id}")
        self._clients: dict[tuple[str, str], _Client] = {}
        self._draining = False

    def app(self) -> web.Application:
        """What it serves: the page, its WebSocket, and whether it can be used."""
        app = web.Application()
        app.add_routes([web.get("/", _page), web.get("/ws", self._socket), web.get("/healthz", self._health)])
        app.cleanup_ctx.append(self._running)
        app.on_shutdown.append(self._let_go)
        return app

    async def _running(self, _: web.Application) -> AsyncIterator[None]:
        async with self._twofold, self._link:
            yield

    async def _health(self, _: web.Request) -> web.Response:
        good = self._link.serves and not self._draining
        return web.Response(text="serving\n" if good else "not serving\n", status=200 if good else 503)

    # A client -------------------------------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        if self._draining or not self._link.serves:
            raise web.HTTPServiceUnavailable(text="try another pod\n")
        socket = web.WebSocketResponse(heartbeat=_ALIVE_S, max_msg_size=_FRAME_BYTES_MAX)
        await socket.prepare(request)
        try:
            async with asyncio.timeout(_HELLO_S):
                client = _Client(socket, _who(await socket.receive_json()))
        except (TypeError, ValueError, KeyError, TimeoutError):
            await socket.close(code=1002, message=b"the first frame is hello")
            return socket
        sending = asyncio.create_task(client.send(self._link))
        try:
            if await self._opened(client):
                await self._listen(client)
            else:
                await sending
        finally:
            await self._gone(client)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, TimeoutError, ConnectionError):
                await sending
        return socket

    async def _opened(self, client: _Client) -> bool:
        who = client.who
        try:
            session = await self._link.open(who.workspace, user_id=who.user, agent_id=who.agent)
        except SessionRefused as refusal:
            client.end(type="refused", message=refusal.message)
            return False
        except TimeoutError:
            client.end(type="moved")
            return False
        client.session = session
        self._clients[session[:2]] = client
        client.tell(type="opened", session=session.session_id, pod=self._pod_id)
        client.tell(type="history", messages=await self._history(who))
        return True

    async def _history(self, who: _Who) -> list[Frame]:
        request = ReadWindowRequest(
            workspace_id=who.workspace, thread_id=who.thread, user_id=who.user, message_count_max=100
        )
        try:
            window = await self._twofold.conversations.ReadWindow(request, timeout=5)
        except grpc.aio.AioRpcError:
            return []  # the chat goes on; only what was said before is not shown
        return [
            {"role": _ROLES[message.role], "text": message.content}
            for message in window.messages
            if message.role in _ROLES and message.content
        ]

    async def _listen(self, client: _Client) -> None:
        async for message in client.socket:
            if message.type is not WSMsgType.TEXT:
                return
            try:
                frame = json.loads(message.data)
                operation, text = str(frame["operation"]), str(frame["text"])
            except (ValueError, KeyError, TypeError):
                await client.socket.close(code=1002, message=b"a frame that nobody knows")
                return
            if client.unanswered >= _UNANSWERED_MAX:
                client.tell(type="failed", operation=operation, message="One message at a time.", again=False)
                continue
            client.unanswered += 1
            client.turn = asyncio.create_task(self._turn(client, operation, text, behind=client.turn))

    async def _gone(self, client: _Client) -> None:
        if client.turn is not None:
            client.turn.cancel()  # the turn itself goes on: see keep_running
            await asyncio.gather(client.turn, return_exceptions=True)
        session = client.session
        if session is not None and self._clients.pop(session[:2], None) is not None:
            with contextlib.suppress(TimeoutError):
                await self._link.close(session)

    # A turn ---------------------------------------------------------------------------------------------------

    async def _turn(self, client: _Client, operation: str, text: str, *, behind: asyncio.Task[None] | None) -> None:
        if behind is not None:
            await asyncio.wait([behind])
        workspace, user, agent, thread = client.who
        request = RunRequest(
            workspace_id=workspace,
            user_id=user,
            agent_id=agent,
            thread_id=thread,
            operation_id=operation,
            message=text,
            keep_running=True,
        )
        try:
            async for event in self._twofold.turns.Run(request):
                _tell_event(client, operation, event)
        except grpc.aio.AioRpcError as error:
            again = error.code() in _AGAIN and refusals.reason(error) not in _ENDED
            after_s = refusals.retry_after_s(error)
            message = error.details() or "It failed."
            reason = Reason.Name(refusals.reason(error))
            client.tell(
                type="failed", operation=operation, reason=reason, message=message, again=again, retry_after_s=after_s
            )
        finally:
            client.unanswered -= 1

    # What the router says -------------------------------------------------------------------------------------

    async def _delivered(self, session: HeldSession, _: str, payload: bytes) -> None:
        client = self._clients.get(session[:2])
        if client is not None:
            client.tell(type="delivered", text=payload.decode(errors="replace"))

    async def _closed(self, session: HeldSession, reason: str) -> None:
        client = self._clients.pop(session[:2], None)
        if client is None:
            return
        if reason in _CLOSED:
            client.end(type="closed", reason=reason, message=f"This session was closed. {_CLOSED[reason]}")
        else:  # it is this pod that has lost it, not the client
            client.end(type="moved")

    async def _drain(self, _: str) -> None:
        self._draining = True
        clients, self._clients = self._clients, {}
        for client in clients.values():
            assert client.session is not None
            client.end(type="moved")
        for client in clients.values():
            assert client.session is not None
            with contextlib.suppress(TimeoutError):
                await self._link.close(client.session, SESSION_CLOSE_REASON_DRAINED)

    async def _let_go(self, _: web.Application) -> None:
        await self._drain("the pod ends")


def _who(hello: Frame) -> _Who:
    """Whose session it is. Here is the place for what proves it: this pod believes what it is told."""
    if hello["type"] != "hello":
        raise ValueError("the first frame is hello")
    return _Who(*(str(hello[name]) for name in _Who._fields))


def _tell_event(client: _Client, operation: str, event: RunResponse) -> None:
    match event.WhichOneof("event"):
        case "started":
            client.tell(type="started", operation=operation, replayed=event.started.replayed)
        case "delta":
            client.tell(type="delta", operation=operation, text=event.delta.text)
        case "completed":
            client.tell(type="completed", operation=operation)


async def _page(_: web.Request) -> web.FileResponse:
    return web.FileResponse(_PAGE)


def main(arguments: Sequence[str]) -> None:
    """Serves until it is told to end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--router", action="append", help=f"host:port; more than once for more than one (default {ROUTER})")
    parser.add_argument("--memory", default=MEMORY, help="host:port (default %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen at (default %(default)s)")
    parser.add_argument("--pod-id", default="gate-1", help="the pod's name: the same after each start (default %(default)s)")
    chosen = parser.parse_args(arguments)
    pod = Pod(chosen.router or [ROUTER], chosen.memory, chosen.pod_id, f"http://{chosen.host}:{chosen.port}")
    web.run_app(pod.app(), host=chosen.host, port=chosen.port, shutdown_timeout=5)


if __name__ == "__main__":
    main(sys.argv[1:])
