"""A pod's link to the routers: what a program needs that users' connections lead to.

    async def deliver(session, message_id, payload): ...   # to the client; returns soon
    async def closed(session, reason): ...                  # the session is over: hang up

    async with PodLink(["router:50053"], pod_id="gate-1", delivered=deliver, closed=closed) as pod:
        session = await pod.open("acme", user_id="ada", agent_id="helper")
        ...
        await pod.close(session)

It keeps one link to one of the routers, opens another where that is lost, and judges its lease by itself: while `serves` is
False nothing may be done for any session, as another pod may hold it.
"""

import asyncio
import contextlib
import itertools
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

import grpc

from twofold import channels
from twofold.errors.v1.reason_pb2 import Reason
from twofold.ids import new_id
from twofold.registry.v1.pod_pb2 import PodIncarnation
from twofold.registry.v1.session_pb2 import SESSION_CLOSE_REASON_CLIENT_LEFT, SessionCloseReason
from twofold.router.v1 import session_pb2 as pb
from twofold.router.v1.session_pb2_grpc import SessionServiceStub

_ANNOUNCED_AT_ONCE = 500
_AGAIN_S = (0.05, 1.0)
_OPENING_S = 10.0
_LEAVING_S = 2.0
_FENCED = "FENCED"
_REASON = "SESSION_CLOSE_REASON_"
_NEVER = float("-inf")

if sys.platform == "linux":

    def _now() -> float:
        """Seconds on a clock that goes on while the machine sleeps: a lease does."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # the next best

    def _now() -> float:
        return time.monotonic()


class HeldSession(NamedTuple):
    """A session that this pod holds. Told apart by the fence from an earlier or later holding of the same session."""

    workspace_id: str
    session_id: str
    user_id: str
    agent_id: str
    fence: int
    open_ms: int


class SessionRefused(Exception):  # noqa: N818  (a refusal is an answer, not an error)
    """A session was not opened, touched or closed: `reason` is the name of the contract's (REASON_NOT_PERMITTED …)."""

    def __init__(self, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s


class _LinkLost(Exception):  # noqa: N818  (a state, not an error)
    """The link was lost before an answer came."""


Delivered = Callable[[HeldSession, str, bytes], Awaitable[None]]
Closed = Callable[[HeldSession, str], Awaitable[None]]
Drain = Callable[[str], Awaitable[None]]
_Call = tuple[str, Any, "asyncio.Future[Any]", float]
_Happening = tuple[Callable[..., Awaitable[None]], tuple[Any, ...], int]


class PodLink:
    """A pod. `delivered` gets messages for its sessions, in order; `closed` hears of sessions that are over, and why: a name
    of SessionCloseReason (REVOKED, TAKEN_OVER …), or FENCED if all are, as the pod was thought dead. `drain` is asked to
    let sessions go. They are called one after the other: what takes long belongs into a task of its own.
    """

    def __init__(
        self,
        routers: Sequence[str],
        *,
        pod_id: str,
        address: str = "",
        delivered: Delivered,
        closed: Closed,
        drain: Drain | None = None,
        actor: str = "",
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        if not routers:
            raise ValueError("a pod needs a router")
        self._routers = itertools.cycle(random.sample(list(routers), len(routers)))
        self._pod_id = pod_id
        self._address = address
        self._on_delivery = delivered
        self._on_closed = closed
        self._on_drain = drain
        self._metadata = ((channels.ACTOR_KEY, actor),) if actor else ()
        self._credentials = credentials
        self._incarnation: PodIncarnation | None = None
        self._start_id = new_id()
        self._sessions: dict[tuple[str, str], HeldSession] = {}
        self._good_until = _NEVER
        self._lease_s = 0.0
        self._linked = asyncio.Event()
        self._saying: asyncio.Queue[pb.PodLinkRequest] | None = None
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._beats: dict[int, float] = {}
        self._happenings: asyncio.Queue[_Happening] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._tell())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves: what is still held is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVING_S):
                await self._leave()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sessions.clear()

    @property
    def serves(self) -> bool:
        """Whether sessions are held now. Looked at just before anything is done for one."""
        return _now() < self._good_until

    @property
    def sessions(self) -> Mapping[tuple[str, str], HeldSession]:
        """What is held, by workspace and session."""
        return MappingProxyType(self._sessions)

    @property
    def incarnation(self) -> tuple[int, int] | None:
        """Which life of the pod this is: epoch and number; None before the first welcome, and after it was fenced."""
        known = self._incarnation
        return None if known is None else (known.epoch, known.number)

    def holds(self, session: HeldSession) -> bool:
        """Whether the session is still held, under this fence, and may be served now."""
        return self.serves and self._sessions.get(session[:2]) == session

    async def linked(self) -> None:
        """Returns when there is a link."""
        await self._linked.wait()

    async def open(
        self,
        workspace_id: str,
        *,
        user_id: str,
        agent_id: str,
        take_over: str = "",
        min_revision_token: bytes = b"",
        timeout_s: float = 10.0,
    ) -> HeldSession:
        """Opens a session, or takes over the one whose id is named. Raises SessionRefused, TimeoutError."""
        request = pb.PodOpen(
            workspace_id=workspace_id,
            session_id=take_over or new_id(),
            user_id=user_id,
            agent_id=agent_id,
            take_over=bool(take_over),
            min_revision_token=min_revision_token,
        )
        async with asyncio.timeout(timeout_s):
            while True:
                session: HeldSession | None = await self._ask("open", request)
                if session is not None:
                    return session
                if not take_over:  # the answer came too late, and the session is closed again
                    request.session_id = new_id()

    async def touch(self, session: HeldSession, *, timeout_s: float = 5.0) -> None:
        """Says that the session is in use. Raises SessionRefused, TimeoutError."""
        request = pb.PodTouch(workspace_id=session.workspace_id, session_id=session.session_id, fence=session.fence)
        async with asyncio.timeout(timeout_s):
            await self._ask("touch", request)

    async def close(
        self,
        session: HeldSession,
        reason: SessionCloseReason.ValueType = SESSION_CLOSE_REASON_CLIENT_LEFT,
        *,
        give_up: bool = False,
        timeout_s: float = 5.0,
    ) -> None:
        """Holds the session no longer; with `give_up` another pod may take it over. What the router cannot be told now it
        learns with the next hello. Raises TimeoutError.
        """
        if self._sessions.get(session[:2]) != session:
            return
        del self._sessions[session[:2]]
        request = pb.PodClose(
            workspace_id=session.workspace_id,
            session_id=session.session_id,
            fence=session.fence,
            reason=reason,
            give_up=give_up,
        )
        with contextlib.suppress(SessionRefused):  # then it was nobody's, or another's, before
            async with asyncio.timeout(timeout_s):
                await self._ask("close", request)

    # Calls ----------------------------------------------------------------------------------------------------

    async def _ask(self, name: str, request: Any) -> Any:
        """The answer to a call, which is repeated if the link is lost before it comes."""
        while True:
            await self._linked.wait()
            try:
                return await self._asked(name, request)
            except _LinkLost:
                await asyncio.sleep(0)

    async def _asked(self, name: str, request: Any) -> Any:
        call_id = next(self._ids)
        request.call_id = call_id
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = (name, request, answer, _now())
        self._say(**{name: request})
        try:
            return await answer
        finally:
            if not answer.cancelled():  # else the answer may come yet, and what it opens is to be closed
                self._calls.pop(call_id, None)

    def _say(self, **said: Any) -> None:
        if self._saying is None:
            raise _LinkLost
        self._saying.put_nowait(pb.PodLinkRequest(**said))

    # The link -------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        wait_s = _AGAIN_S[0]
        while not self._leaving:
            try:
                if await self._link(next(self._routers)):
                    wait_s = _AGAIN_S[0]
            except (grpc.aio.AioRpcError, TimeoutError, OSError):
                pass
            await asyncio.sleep(random.uniform(0.5, 1) * wait_s)
            wait_s = min(2 * wait_s, _AGAIN_S[1])

    async def _link(self, router: str) -> bool:
        """One link, until it is lost; whether it stood."""
        async with self._opened(router) as channel:
            call = SessionServiceStub(channel).PodLink(metadata=self._metadata)
            tasks: list[asyncio.Task[None]] = []
            try:
                async with asyncio.timeout(_OPENING_S):
                    first = await self._hello(call)
                if first is None:
                    return False
                heartbeat_s = first.heartbeat_interval.ToMicroseconds() / 1e6
                tasks = [asyncio.create_task(self._speak(call)), asyncio.create_task(self._beat(heartbeat_s))]
                self._linked.set()
                await self._listen(call)
                return True
            finally:
                self._lost()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                call.cancel()

    def _opened(self, router: str) -> grpc.aio.Channel:
        # Without retries: what was said on a link that is lost is said again by us, not by the channel.
        options = [*channels.options(channels.service_config([])), ("grpc.keepalive_permit_without_calls", 1)]
        if self._credentials is None:
            return grpc.aio.insecure_channel(router, options=options)
        return grpc.aio.secure_channel(router, self._credentials, options=options)

    async def _hello(self, call: Any) -> pb.PodWelcome | None:
        """Says who we are and what we hold; None if that life is over."""
        sent_at = _now()
        held = list(self._sessions.values()) if self._incarnation is not None else []
        hello = pb.PodHello(pod_id=self._pod_id, address=self._address, session_count=len(held))
        if self._incarnation is None:
            hello.request_id = self._start_id
        else:
            hello.incarnation.CopyFrom(self._incarnation)
        await call.write(pb.PodLinkRequest(hello=hello))
        for announce in _announced(held):
            await call.write(announce)
        told = await call.read()
        if told is grpc.aio.EOF:
            return None
        if told.WhichOneof("told") == "fenced":
            self._fenced()
            return None
        welcome: pb.PodWelcome = told.welcome
        self._incarnation = welcome.incarnation
        self._lease_s = welcome.lease_duration.ToMicroseconds() / 1e6
        self._good_until = max(self._good_until, sent_at + self._lease_s)
        self._saying = asyncio.Queue()
        return welcome

    async def _speak(self, call: Any) -> None:
        saying = self._saying
        assert saying is not None
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # whoever listens hears of it
            while True:
                request = await saying.get()
                if request.HasField("heartbeat"):
                    self._beats[request.heartbeat.nonce] = _now()  # before it is sent
                await call.write(request)

    async def _beat(self, each_s: float) -> None:
        while True:
            await asyncio.sleep(each_s)
            self._heartbeat()

    def _heartbeat(self) -> None:
        while len(self._beats) > 16:
            del self._beats[next(iter(self._beats))]
        self._say(heartbeat=pb.PodHeartbeat(nonce=next(self._ids), session_count=len(self._sessions)))

    async def _listen(self, call: Any) -> None:
        while (told := await call.read()) is not grpc.aio.EOF:
            self._hear(told)

    def _hear(self, told: pb.PodLinkResponse) -> None:
        match told.WhichOneof("told"):
            case "alive":
                sent_at = self._beats.pop(told.alive.nonce, _NEVER)
                self._good_until = max(self._good_until, sent_at + self._lease_s)
            case "delivery":
                delivery = told.delivery
                held = self._sessions.get((delivery.workspace_id, delivery.session_id))
                self._happens(self._pass_on, held, delivery.message_id, delivery.payload, ack=delivery.delivery)
            case "opened":
                self._answered_open(told.opened)
            case "done":
                self._done(told.done.call_id)
            case "refused":
                self._refused(told.refused)
            case "closed":
                self._closed(told.closed)
            case "drain":
                if self._on_drain is not None:
                    self._happens(self._on_drain, told.drain.reason)
            case "reannounce":
                for announce in _announced(list(self._sessions.values())):
                    self._say(announce=announce.announce)
                self._heartbeat()
            case "fenced":
                self._fenced()

    def _answered_open(self, opened: pb.PodOpened) -> None:
        call = self._calls.pop(opened.call_id, None)
        if call is None:
            return
        _, request, answer, sent_at = call
        if answer.done() or _now() >= sent_at + opened.valid_for.ToMicroseconds() / 1e6:
            # Nobody waits for it any more, or it may have been revoked meanwhile.
            self._say(close=_closing(request, opened.fence, next(self._ids)))
            if not answer.done():
                answer.set_result(None)
            return
        open_ms = opened.open_time.ToMilliseconds()
        session = HeldSession(
            request.workspace_id, request.session_id, request.user_id, request.agent_id, opened.fence, open_ms
        )
        self._sessions[session[:2]] = session
        answer.set_result(session)

    def _done(self, call_id: int) -> None:
        call = self._calls.pop(call_id, None)
        if call is not None and not call[2].done():
            call[2].set_result(None)

    def _refused(self, refused: pb.PodRefused) -> None:
        call = self._calls.pop(refused.call_id, None)
        if call is None or call[2].done():
            return
        name, request, answer, _ = call
        if name != "open" and refused.reason == Reason.REASON_SESSION_LOST:
            self._drop((request.workspace_id, request.session_id), request.fence, "TAKEN_OVER")
        delay = refused.retry_delay.ToMicroseconds() / 1e6 if refused.HasField("retry_delay") else None
        answer.set_exception(SessionRefused(Reason.Name(refused.reason), refused.message, delay))

    def _closed(self, closed: pb.PodClosed) -> None:
        reason = SessionCloseReason.Name(closed.reason).removeprefix(_REASON)
        self._drop((closed.workspace_id, closed.session_id), closed.fence, reason)

    def _drop(self, key: tuple[str, str], fence: int, reason: str) -> None:
        held = self._sessions.get(key)
        if held is not None and held.fence <= fence:
            del self._sessions[key]
            self._happens(self._on_closed, held, reason)

    def _fenced(self) -> None:
        """This life is over, and nothing is held any more."""
        self._good_until = _NEVER
        self._incarnation, self._start_id = None, new_id()
        sessions, self._sessions = self._sessions, {}
        for held in sessions.values():
            self._happens(self._on_closed, held, _FENCED)

    def _lost(self) -> None:
        self._linked.clear()
        self._saying = None
        self._beats.clear()
        calls, self._calls = self._calls, {}
        for _, _, answer, _ in calls.values():
            if not answer.done():
                answer.set_exception(_LinkLost())

    async def _leave(self) -> None:
        self._leaving = True
        if self._saying is not None:
            self._say(leave=pb.PodLeave())
            while self._linked.is_set():  # noqa: ASYNC110  (the router ends the link)
                await asyncio.sleep(0.01)

    # What happens to sessions ---------------------------------------------------------------------------------

    def _happens(self, what: Callable[..., Awaitable[None]], *told: Any, ack: int = 0) -> None:
        self._happenings.put_nowait((what, told, ack))

    async def _pass_on(self, session: HeldSession | None, message_id: str, payload: bytes) -> None:
        if session is not None and self.holds(session):
            await self._on_delivery(session, message_id, payload)

    async def _tell(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            what, told, ack = await self._happenings.get()
            link = self._saying
            try:
                await what(*told)
            except Exception as error:  # noqa: BLE001  (whatever it was: the other sessions have theirs to come)
                loop.call_exception_handler({"message": "a callback of a pod failed", "exception": error})
            if ack and link is not None and link is self._saying:
                self._say(ack=pb.PodAck(delivery=ack))


def _announced(held: Sequence[HeldSession]) -> list[pb.PodLinkRequest]:
    requests = []
    for begin in range(0, len(held), _ANNOUNCED_AT_ONCE):
        announce = pb.PodAnnounce()
        for one in held[begin : begin + _ANNOUNCED_AT_ONCE]:
            session = announce.sessions.add(**{name: value for name, value in one._asdict().items() if name != "open_ms"})
            session.open_time.FromMilliseconds(one.open_ms)
        requests.append(pb.PodLinkRequest(announce=announce))
    return requests


def _closing(request: pb.PodOpen, fence: int, call_id: int) -> pb.PodClose:
    return pb.PodClose(
        call_id=call_id,
        workspace_id=request.workspace_id,
        session_id=request.session_id,
        fence=fence,
        reason=SESSION_CLOSE_REASON_CLIENT_LEFT,
    )
