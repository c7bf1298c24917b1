"""A pod's link against a router that does as it is told: what is repeated, what comes too late, when the lease is over."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.waiting import until
from twofold import pod as pods
from twofold.errors.v1.reason_pb2 import REASON_NOT_PERMITTED, REASON_SESSION_LOST
from twofold.pod import HeldSession, PodLink, SessionRefused
from twofold.registry.v1.pod_pb2 import PodIncarnation
from twofold.registry.v1.session_pb2 import SESSION_CLOSE_REASON_REVOKED
from twofold.router.v1 import session_pb2 as pb
from twofold.router.v1.session_pb2_grpc import SessionServiceServicer, add_SessionServiceServicer_to_server

LEASE_S = 10.0


class Link:
    """One link, as its router sees it."""

    def __init__(self) -> None:
        self.said: list[pb.PodLinkRequest] = []
        self.telling: asyncio.Queue[pb.PodLinkResponse | None] = asyncio.Queue()

    def tell(self, **told: Any) -> None:
        self.telling.put_nowait(pb.PodLinkResponse(**told))

    def hang_up(self) -> None:
        self.telling.put_nowait(None)

    def welcome(self, number: int, *, heartbeat_s: float = 0.02) -> None:
        welcome = pb.PodWelcome(router_id="r", incarnation=PodIncarnation(epoch=1, number=number), sessions_max=10)
        welcome.heartbeat_interval.FromMicroseconds(int(heartbeat_s * 1e6))
        welcome.lease_duration.FromMicroseconds(int(LEASE_S * 1e6))
        self.tell(welcome=welcome)

    def opened(self, asked: pb.PodOpen, fence: int, *, valid_s: float = 60) -> None:
        opened = pb.PodOpened(call_id=asked.call_id, fence=fence, listed=True)
        opened.valid_for.FromMicroseconds(int(valid_s * 1e6))
        self.tell(opened=opened)

    def deliver(self, session: HeldSession, number: int, message_id: str) -> None:
        named = {"workspace_id": session.workspace_id, "session_id": session.session_id, "message_id": message_id}
        self.tell(delivery=pb.PodDelivery(delivery=number, payload=b"x", **named))

    async def hears(self, kind: str, count: int = 1) -> Any:
        """The message of this kind, once so many of them have come."""
        found: list[Any] = []

        def so() -> bool:
            found[:] = [getattr(one, kind) for one in self.said if one.HasField(kind)]  # type: ignore[arg-type]
            return len(found) >= count

        await until(so, f"{count} {kind}")
        return found[count - 1]


class Router(SessionServiceServicer):
    """Links in the order in which they came."""

    def __init__(self) -> None:
        self.links: list[Link] = []

    async def PodLink(self, requests: Any, context: Any) -> AsyncIterator[pb.PodLinkResponse]:
        link = Link()
        self.links.append(link)

        async def hear() -> None:
            async for request in requests:
                link.said.append(request)

        hearing = asyncio.create_task(hear())
        try:
            while (told := await link.telling.get()) is not None:
                yield told
        finally:
            hearing.cancel()

    async def link(self, number: int = 1) -> Link:
        await until(lambda: len(self.links) >= number, f"link {number}")
        return self.links[number - 1]


class Clock:
    """The time, as the test has it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Pod(PodLink):
    """Remembers what it was told; `fails` makes its callbacks fail."""

    def __init__(self, target: str) -> None:
        self.got: list[tuple[str, bytes]] = []
        self.over: list[tuple[str, str]] = []
        self.fails = False
        super().__init__([target], pod_id="gate-1", delivered=self._got, closed=self._over)

    async def _got(self, session: HeldSession, message_id: str, payload: bytes) -> None:
        self.got.append((message_id, payload))
        if self.fails:
            raise ValueError("a defect")

    async def _over(self, session: HeldSession, reason: str) -> None:
        self.over.append((session.session_id, reason))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pods, "_now", clock)
    monkeypatch.setattr(pods, "_LEAVING_S", 0.1)
    return clock


@pytest.fixture
async def router(clock: Clock) -> AsyncIterator[Router]:
    router = Router()  # type: ignore[abstract]  # only what a pod asks
    server = grpc.aio.server()
    add_SessionServiceServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    router.target = f"127.0.0.1:{port}"  # type: ignore[attr-defined]
    yield router
    await server.stop(0)


@pytest.fixture
async def pod(router: Router) -> AsyncIterator[Pod]:
    async with Pod(router.target) as pod:  # type: ignore[attr-defined]
        (await router.link()).welcome(7)
        await pod.linked()
        yield pod


async def opened(pod: Pod, link: Link, fence: int = 5, *, count: int = 1) -> HeldSession:
    opening = asyncio.create_task(pod.open("acme", user_id="ada", agent_id="helper", timeout_s=60))
    link.opened(await link.hears("open", count), fence)
    return await opening


async def test_a_link_that_is_lost_is_opened_again_with_what_is_held(pod: Pod, router: Router) -> None:
    first = await router.link()
    session = await opened(pod, first)
    assert pod.holds(session)
    first.hang_up()
    second = await router.link(2)
    hello = await second.hears("hello")
    assert (hello.pod_id, hello.incarnation.number, hello.session_count) == ("gate-1", 7, 1)
    (held,) = (await second.hears("announce")).sessions
    assert (held.session_id, held.fence, held.user_id) == (session.session_id, 5, "ada")
    second.welcome(7)
    await pod.linked()
    assert pod.holds(session)
    assert not pod.over


async def test_an_open_is_repeated_on_the_next_link_under_the_same_id(pod: Pod, router: Router) -> None:
    first = await router.link()
    opening = asyncio.create_task(pod.open("acme", user_id="ada", agent_id="helper", timeout_s=60))
    asked = await first.hears("open")
    first.hang_up()
    second = await router.link(2)
    second.welcome(7)
    again = await second.hears("open")
    assert (again.session_id, again.user_id) == (asked.session_id, "ada")
    assert again.call_id != asked.call_id
    second.opened(again, 9)
    assert (await opening).fence == 9


async def test_what_nobody_waits_for_any_more_is_closed_again(pod: Pod, router: Router) -> None:
    link = await router.link()
    with pytest.raises(TimeoutError):
        await pod.open("acme", user_id="ada", agent_id="helper", timeout_s=0.05)
    asked = await link.hears("open")
    link.opened(asked, 5)
    closed = await link.hears("close")
    assert (closed.session_id, closed.fence) == (asked.session_id, 5)
    assert not pod.sessions


async def test_an_answer_that_comes_too_late_opens_nothing_and_is_asked_for_again(
    pod: Pod, router: Router, clock: Clock
) -> None:
    link = await router.link()
    opening = asyncio.create_task(pod.open("acme", user_id="ada", agent_id="helper", timeout_s=60))
    asked = await link.hears("open")
    clock.now += 0.6
    link.opened(asked, 5, valid_s=0.5)
    assert (await link.hears("close")).fence == 5
    again = await link.hears("open", 2)
    assert again.session_id != asked.session_id
    link.opened(again, 6, valid_s=0.5)
    assert (await opening).session_id == again.session_id
    assert len(pod.sessions) == 1


async def test_a_refusal_says_why(pod: Pod, router: Router) -> None:
    link = await router.link()
    opening = asyncio.create_task(pod.open("acme", user_id="eve", agent_id="helper", timeout_s=60))
    asked = await link.hears("open")
    link.tell(refused=pb.PodRefused(call_id=asked.call_id, reason=REASON_NOT_PERMITTED, message="no"))
    with pytest.raises(SessionRefused) as caught:
        await opening
    assert (caught.value.reason, caught.value.retry_after_s) == ("REASON_NOT_PERMITTED", None)


async def test_the_lease_counts_from_when_a_heartbeat_was_sent(pod: Pod, router: Router, clock: Clock) -> None:
    link = await router.link()
    session = await opened(pod, link)
    beat = await link.hears("heartbeat")
    clock.now += LEASE_S - 0.1
    assert pod.holds(session)
    clock.now += 0.2
    assert not pod.serves
    link.tell(alive=pb.PodAlive(nonce=beat.nonce))  # of one that was sent before
    link.tell(alive=pb.PodAlive(nonce=12345678))  # of none
    link.deliver(session, 1, "m-1")
    await link.hears("ack")
    assert not pod.serves
    assert not pod.got  # another pod may hold the session
    count = len([one for one in link.said if one.HasField("heartbeat")])
    link.tell(alive=pb.PodAlive(nonce=(await link.hears("heartbeat", count + 2)).nonce))
    await until(lambda: pod.serves)
    assert pod.holds(session)
    link.deliver(session, 2, "m-2")
    await until(lambda: pod.got == [("m-2", b"x")])


async def test_who_is_fenced_drops_all_and_begins_a_new_life(pod: Pod, router: Router) -> None:
    first = await router.link()
    session = await opened(pod, first)
    first.tell(fenced=pb.PodFenced(reason="dead"))
    await until(lambda: pod.over == [(session.session_id, "FENCED")])
    assert not pod.serves
    assert pod.incarnation is None
    first.hang_up()
    second = await router.link(2)
    hello = await second.hears("hello")
    assert not hello.HasField("incarnation")
    assert hello.request_id not in ("", (await first.hears("hello")).request_id)
    second.welcome(8)
    await pod.linked()
    assert pod.incarnation == (1, 8)


async def test_what_is_closed_or_lost_is_told_once_and_only_under_its_fence(pod: Pod, router: Router) -> None:
    link = await router.link()
    first, second = await opened(pod, link, 5), await opened(pod, link, 6, count=2)
    named = {"workspace_id": "acme", "session_id": first.session_id}
    link.tell(closed=pb.PodClosed(fence=4, reason=SESSION_CLOSE_REASON_REVOKED, **named))  # of a holding before
    link.deliver(first, 1, "m-1")
    await link.hears("ack")
    assert pod.holds(first)
    for _ in range(2):
        link.tell(closed=pb.PodClosed(fence=5, reason=SESSION_CLOSE_REASON_REVOKED, **named))
    touching = asyncio.create_task(pod.touch(second, timeout_s=60))
    asked = await link.hears("touch")
    link.tell(refused=pb.PodRefused(call_id=asked.call_id, reason=REASON_SESSION_LOST))
    with pytest.raises(SessionRefused):
        await touching
    await until(lambda: pod.over == [(first.session_id, "REVOKED"), (second.session_id, "TAKEN_OVER")])
    assert not pod.sessions


async def test_a_callback_that_fails_ends_nothing(pod: Pod, router: Router) -> None:
    link = await router.link()
    session = await opened(pod, link)
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))
    try:
        pod.fails = True
        for number in (1, 2):
            link.deliver(session, number, "m")
        assert (await link.hears("ack", 2)).delivery == 2
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    assert told == ["a defect"] * 2


async def test_all_is_announced_again_when_the_router_asks(pod: Pod, router: Router) -> None:
    link = await router.link()
    held = [await opened(pod, link, number, count=number) for number in (1, 2)]
    link.tell(reannounce=pb.PodReannounce())
    announced = (await link.hears("announce")).sessions
    assert {one.session_id for one in announced} == {one.session_id for one in held}
    index = next(index for index, one in enumerate(link.said) if one.HasField("announce"))
    await until(lambda: len(link.said) > index + 1)
    assert link.said[index + 1].heartbeat.session_count == 2


async def test_who_leaves_says_so(router: Router) -> None:
    async with contextlib.AsyncExitStack() as stack:
        pod = await stack.enter_async_context(Pod(router.target))  # type: ignore[attr-defined]
        link = await router.link()
        link.welcome(7)
        await pod.linked()
    await link.hears("leave")
