"""Sessions over real routers, a real registry and a real Redis: what is opened is found, reached, closed, and remembered."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.router.conftest import answered, refused
from tests.router.pods import Cloud, Pod, Sessions, a_cloud, a_ground, settled
from tests.router.test_revocation import House
from tests.waiting import until
from twofold.errors.v1.reason_pb2 import Reason
from twofold.pod import HeldSession, SessionRefused
from twofold.registry.v1 import agent_pb2, pod_pb2, session_pb2, user_pb2, workspace_pb2
from twofold.router.v1 import session_pb2 as pb
from twofold_chassis.clocks import boot_s
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_router.session_commands import PodCommands
from twofold_router.session_table import RedisTable
from twofold_router.sessions import TableUnavailable

Code = grpc.StatusCode
L_S = 0.5
QUICK = {"lease_ms": int(L_S * 1000), "silence_ms": 300}


@pytest.fixture(scope="module")
async def ground(postgres_server: EmbeddedPostgres, servers_folder: Path) -> AsyncIterator[tuple[House, EmbeddedRedis]]:
    async with a_ground(postgres_server, servers_folder, "ground_of_sessions") as ground:
        yield ground


@pytest.fixture
async def cloud(ground: tuple[House, EmbeddedRedis], workspace_id: str) -> AsyncIterator[Cloud]:
    async with a_cloud(ground, workspace_id) as cloud:
        yield cloud


@contextlib.contextmanager
def refuses(reason: str) -> Any:
    """The pod's call is refused for this reason."""
    with pytest.raises(SessionRefused) as caught:
        yield
    assert caught.value.reason == reason, caught.value


# What others see of it -------------------------------------------------------------------------------------------------


async def test_a_session_is_found_until_its_pod_closes_it(cloud: Cloud) -> None:
    router = await cloud.router()
    pod = await cloud.pod(router)
    session = await cloud.open(pod)
    answer = await router.get(session.session_id)
    found = answer.session
    assert (found.user_id, found.agent_id, found.pod_id, found.fence) == ("ada", "agent", "gate-1", session.fence)
    assert answer.pod_address == "gate-1:80"
    assert await router.ids() == {session.session_id}
    await pod.close(session)
    assert await router.ids() == set()
    with refused(Code.NOT_FOUND, "REASON_SESSION_UNKNOWN"):
        await router.get(session.session_id)


async def test_sessions_are_listed_and_counted_by_whose_they_are_page_by_page(cloud: Cloud) -> None:
    router, other = await cloud.router(), await cloud.router()
    pods = [await cloud.pod(router, pod_id="gate-1"), await cloud.pod(other, pod_id="gate-2")]
    await cloud.house.make_agent("second")
    opened: list[tuple[HeldSession, Pod]] = []
    for pod in pods:
        for user_id, agent_id in (("ada", "agent"), ("root", "agent"), ("root", "second")):
            session = await pod.open(cloud.ws, user_id=user_id, agent_id=agent_id, timeout_s=30)
            opened.append((session, pod))

    def those(user: str = "", agent: str = "", pod: Pod | None = None) -> set[str]:
        return {
            one.session_id
            for one, at in opened
            if user in ("", one.user_id) and agent in ("", one.agent_id) and pod in (None, at)
        }

    for asked in (router, other):
        assert await asked.ids() == those()
        assert await asked.ids(user_id="root") == those(user="root")
        assert await asked.ids(agent_id="agent") == those(agent="agent")
        assert await asked.ids(pod_id="gate-2") == those(pod=pods[1])
        assert await asked.ids(user_id="root", agent_id="second", pod_id="gate-1") == those("root", "second", pods[0])
        assert await asked.ids(user_id="nobody") == set()
        assert (await asked.count(), await asked.count(user_id="root", agent_id="agent")) == (6, 2)
        assert await asked.pods() == {"gate-1", "gate-2"}
    seen, token = [], ""
    for _ in range(6):
        page = await router.page(page_size=1, page_token=token)
        token = page.next_page_token
        seen += [one.session_id for one in page.sessions]
    assert (seen, token) == (sorted(those()), "")
    token = (await router.page(page_size=2)).next_page_token
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_PAGE_TOKEN"):
        await router.page(page_size=2, page_token=token, user_id="ada")


async def test_a_message_reaches_a_session_wherever_its_pod_has_its_link(cloud: Cloud) -> None:
    router, other = await cloud.router(), await cloud.router()
    near, far = await cloud.pod(router, pod_id="gate-1"), await cloud.pod(other, pod_id="gate-2")
    first, second, third = await cloud.open(near), await cloud.open(far), await cloud.open(far, "root")
    for number, session in enumerate((first, second, third)):
        sent = await router.send(b"%d" % number, session_id=session.session_id, message_id=f"m-{number}")
        assert (sent.sessions, sent.sent) == (1, 1)
    of_ada = pb.SessionsOf(user_id="ada", agent_id="agent")
    sent = await router.send(b"all", sessions_of=of_ada)
    assert (sent.sessions, sent.sent) == (2, 2)
    await until(lambda: len(near.got) == 2 and len(far.got) == 3)
    assert near.got == [(first.session_id, "m-0", b"0"), (first.session_id, "", b"all")]
    assert far.got == [(second.session_id, "m-1", b"1"), (third.session_id, "m-2", b"2"), (second.session_id, "", b"all")]
    nobody = await router.send(b"x", sessions_of=pb.SessionsOf(user_id="nobody", agent_id="agent"))
    assert (nobody.sessions, nobody.sent) == (0, 0)
    with refused(Code.NOT_FOUND, "REASON_SESSION_UNKNOWN"):
        await router.send(b"x", session_id="none")


async def test_others_close_a_session_wherever_its_pod_has_its_link(cloud: Cloud) -> None:
    router, other = await cloud.router(), await cloud.router()
    near, far = await cloud.pod(router, pod_id="gate-1"), await cloud.pod(other, pod_id="gate-2")
    for pod in (near, far):
        session = await cloud.open(pod)
        with refused(Code.ABORTED, "REASON_SESSION_LOST"):
            await router.close(session.session_id, fence=session.fence - 1)
        assert await router.close(session.session_id, reason=session_pb2.SESSION_CLOSE_REASON_IDLE, fence=session.fence)
        assert await router.ids() == set()
        await pod.hears(session, "IDLE")
        assert not pod.sessions
        with refused(Code.NOT_FOUND, "REASON_SESSION_UNKNOWN"):
            await router.close(session.session_id)


async def test_a_close_that_was_not_heard_is_learnt_from_the_table(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    router, other = await cloud.router(), await cloud.router()
    far = await cloud.pod(other)
    session = await cloud.open(far)
    monkeypatch.setattr(PodCommands, "_publish", _lost)
    assert not await router.close(session.session_id)
    await far.hears(session, "CLOSED_BY_OTHERS")
    await settled(far)
    assert await router.ids() == set()


async def _lost(*_: Any) -> None:
    """A word that nobody hears."""


async def test_a_pod_is_asked_to_drain_wherever_its_link_is(cloud: Cloud) -> None:
    router, other = await cloud.router(), await cloud.router()
    pods = [await cloud.pod(router, pod_id="gate-1"), await cloud.pod(other, pod_id="gate-2")]
    for pod, name in zip(pods, ("gate-1", "gate-2"), strict=True):
        assert (await router.stub.DrainPod(pb.DrainPodRequest(pod_id=name, reason="a new version"))).told
        await until(lambda pod=pod: pod.drained == ["a new version"])  # type: ignore[misc]
    with refused(Code.NOT_FOUND, "REASON_POD_UNKNOWN"):
        await router.stub.DrainPod(pb.DrainPodRequest(pod_id="gate-3"))


async def test_a_pod_that_ends_its_side_has_its_answers_and_its_sessions_until_its_lease_ends(cloud: Cloud) -> None:
    router = await cloud.router()
    async with talking(router, pb.PodHello(pod_id="gate-1")) as link:
        await link.say(open=an_open(cloud, 1))
        await link.call.done_writing()
        assert [(await link.told()).WhichOneof("told") for _ in range(2)] == ["welcome", "opened"]
        with pytest.raises(EOFError):
            await link.told()
    assert await router.ids() == {"s-1"}
    sent = await router.send(b"x", session_id="s-1")
    assert (sent.sessions, sent.sent) == (1, 0)
    assert not (await router.stub.DrainPod(pb.DrainPodRequest(pod_id="gate-1"))).told
    assert not await router.close("s-1")
    assert await router.ids() == set()


async def test_the_registry_is_told_what_became_of_sessions(cloud: Cloud) -> None:
    router = await cloud.router()
    async with Pod(router.target, pod_id="gate-1") as pod:
        await pod.linked()
        left, idle, drained = [await cloud.open(pod) for _ in range(3)]
        await pod.close(left)
        await router.close(idle.session_id, reason=session_pb2.SESSION_CLOSE_REASON_IDLE)
    expected = {
        left.session_id: session_pb2.SESSION_CLOSE_REASON_CLIENT_LEFT,
        idle.session_id: session_pb2.SESSION_CLOSE_REASON_IDLE,
        drained.session_id: session_pb2.SESSION_CLOSE_REASON_DRAINED,
    }

    async def told() -> bool:
        listed = await cloud.house.api.sessions.ListSessions(session_pb2.ListSessionsRequest(workspace_id=cloud.ws))
        known = {one.session_id: one for one in listed.sessions if one.HasField("open_time")}
        return {one: known[one].close_reason for one in known} == expected

    await until(told)
    assert await router.pods() == set()


# Who may ---------------------------------------------------------------------------------------------------------------


async def test_a_session_is_opened_only_for_who_may_use_the_agent(cloud: Cloud) -> None:
    router = await cloud.router()
    pod = await cloud.pod(router)
    for user_id, agent_id, reason in (
        ("nobody", "agent", "REASON_NOT_PERMITTED"),
        ("ada", "none", "REASON_NOT_PERMITTED"),
        ("root", "none", "REASON_AGENT_UNKNOWN"),
    ):
        with refuses(reason):
            await pod.open(cloud.ws, user_id=user_id, agent_id=agent_id)
    assert await router.ids() == set()
    assert not pod.sessions


@pytest.mark.parametrize("redis", ["there", "stopped"])
async def test_c1_a_revoke_closes_the_sessions_of_the_pair_with_or_without_redis(cloud: Cloud, redis: str) -> None:
    router, other = await cloud.router(), await cloud.router()
    pods = [await cloud.pod(router, pod_id="gate-1"), await cloud.pod(other, pod_id="gate-2")]
    of_ada = [await cloud.open(pod) for pod in pods]
    of_root = [await cloud.open(pod, "root") for pod in pods]
    if redis == "stopped":
        await cloud.server.kill()
    await cloud.house.revoke(wait=True)
    for pod, session in zip(pods, of_ada, strict=True):
        await pod.hears(session, "REVOKED")
        with refuses("REASON_NOT_PERMITTED"):
            await cloud.open(pod)
    assert [set(pod.sessions.values()) for pod in pods] == [{session} for session in of_root]
    if redis == "stopped":
        await cloud.server.start()

    async def listed() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            return await router.ids() == {session.session_id for session in of_root}
        return False

    await until(listed)


async def test_c1_what_deletes_a_permission_otherwise_closes_as_well(cloud: Cloud) -> None:
    router = await cloud.router()
    pod = await cloud.pod(router)
    api = cloud.house.api
    await api.make_user(cloud.ws, "eve")
    for agent_id in ("second", "third"):
        await cloud.house.make_agent(agent_id)
    await cloud.house.grant("eve")
    await cloud.house.grant("ada", "second")
    token = await cloud.house.grant("ada", "third")
    sessions = {
        name: await pod.open(cloud.ws, user_id=user, agent_id=agent, min_revision_token=token, timeout_s=30)
        for name, user, agent in (("kept", "ada", "third"), ("user", "eve", "agent"), ("agent", "ada", "second"))
    }
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=cloud.ws, user_id="eve"))
    await pod.hears(sessions["user"], "REVOKED")
    await api.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(workspace_id=cloud.ws, agent_id="second"))
    await pod.hears(sessions["agent"], "REVOKED")
    assert set(pod.sessions.values()) == {sessions["kept"]}
    await api.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(workspace_id=cloud.ws))
    await pod.hears(sessions["kept"], "REVOKED")


async def test_c1_a_grant_that_ends_by_itself_closes_too(cloud: Cloud) -> None:
    router = await cloud.router(**QUICK)
    pod = await cloud.pod(router)
    ends = Timestamp()
    ends.GetCurrentTime()
    ends.FromMicroseconds(ends.ToMicroseconds() + 1_500_000)
    token = await cloud.house.grant(expire_time=ends)
    session = await cloud.open(pod, min_revision_token=token)
    await pod.hears(session, "REVOKED")


async def test_c1_no_session_is_opened_after_a_revoke_has_returned(cloud: Cloud) -> None:
    routers = [await cloud.router(**QUICK), await cloud.router(**QUICK)]
    pods = [await cloud.pod(router, pod_id=f"gate-{index}") for index, router in enumerate(routers)]
    opened: list[tuple[float, float]] = []
    over = False

    async def keep_opening(pod: Pod) -> None:
        while not over:
            asked_at = boot_s()
            with contextlib.suppress(SessionRefused):
                session = await pod.open(cloud.ws, user_id="ada", agent_id="agent", timeout_s=30)
                opened.append((asked_at, boot_s()))
                await pod.close(session)

    tasks = [asyncio.create_task(keep_opening(pod)) for pod in pods]
    for turn in range(6):
        wait = bool(turn % 2)
        seen = len(opened)
        await cloud.house.grant()
        await until(lambda seen=seen: len(opened) > seen + 4)  # type: ignore[misc]
        await cloud.house.revoke(wait=wait)
        after = boot_s() + (0 if wait else L_S + 0.05)
        while boot_s() < after + 0.1:  # noqa: ASYNC110  (nothing is to happen)
            await asyncio.sleep(0.01)
        assert not [one for one in opened if one[0] > after]
    over = True
    await asyncio.gather(*tasks)


async def test_c1_a_revoke_between_the_check_and_the_table_opens_nothing(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = await cloud.router()
    pod = await cloud.pod(router)
    place = RedisTable.open

    async def revoked_meanwhile(self: RedisTable, *asked: Any, **more: Any) -> Any:
        placed = await place(self, *asked, **more)
        await cloud.house.revoke(wait=True)
        return placed

    monkeypatch.setattr(RedisTable, "open", revoked_meanwhile)
    with refuses("REASON_NOT_PERMITTED"):
        await cloud.open(pod)

    async def gone() -> bool:
        return await router.ids() == set()

    await until(gone)


# Redis is away ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redis", ["gone", "silent"])
async def test_without_redis_sessions_are_opened_and_served_and_listed_once_it_is_back(cloud: Cloud, redis: str) -> None:
    router = await cloud.router(redis=cloud.redis.model_copy(update={"budget_ms": 200}))
    pod = await cloud.pod(router)
    before = await cloud.open(pod)
    if redis == "gone":
        await cloud.server.kill()
    else:
        cloud.silence()
    during = await cloud.open(pod)
    assert (await answered(lambda: router.send(b"hello", session_id=during.session_id))).sent == 1
    await until(lambda: len(pod.got) == 1)
    await settled(pod)
    assert pod.holds(before)
    with refuses("REASON_REDIS_UNAVAILABLE"):
        await cloud.open(pod, take_over="another")
    for asked in (router.ids(), router.get("other"), router.count(), router.pods()):
        with refused(Code.UNAVAILABLE, "REASON_REDIS_UNAVAILABLE"):
            await asked
    await pod.close(before)
    if redis == "gone":
        await cloud.server.start()
    else:  # what was sent to it is done now
        cloud.server.resume()

    async def listed() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            return await router.ids() == {during.session_id}
        return False

    await until(listed)
    assert (await router.get(during.session_id)).session.fence == during.fence


async def test_what_the_table_was_not_told_of_is_announced(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    router = await cloud.router()
    pod = await cloud.pod(router)
    first = await cloud.open(pod)

    async def away(*_: Any, **__: Any) -> Any:
        raise TableUnavailable("away for a moment")

    with monkeypatch.context() as patch:
        patch.setattr(RedisTable, "open", away)
        second = await cloud.open(pod)

    async def listed() -> bool:
        return await router.ids() == {first.session_id, second.session_id}

    await until(listed)


# Bounds and bad input --------------------------------------------------------------------------------------------------


async def test_users_and_pods_have_so_many_sessions_and_a_router_so_many_links(cloud: Cloud) -> None:
    router = await cloud.router(user_sessions_max=2, pod_sessions_max=3, pod_links_max=1)
    pod = await cloud.pod(router)
    first, _ = [await cloud.open(pod) for _ in range(2)]
    with refuses("REASON_TOO_MANY"):
        await cloud.open(pod)
    await cloud.open(pod, "root")
    with refuses("REASON_TOO_MANY"):
        await cloud.open(pod, "root")
    await pod.close(first)
    await cloud.open(pod)
    async with talking(router, pb.PodHello(pod_id="gate-2")) as link:
        with refused(Code.RESOURCE_EXHAUSTED, "REASON_TOO_MANY"):
            await link.told()


def an_open(cloud: Cloud, number: int) -> pb.PodOpen:
    """Asks for session "s-<number>" for ada."""
    return pb.PodOpen(call_id=number, workspace_id=cloud.ws, session_id=f"s-{number}", user_id="ada", agent_id="agent")


class Talk:
    """A link by hand."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def say(self, **said: Any) -> None:
        await self.call.write(pb.PodLinkRequest(**said))

    async def told(self) -> pb.PodLinkResponse:
        async with asyncio.timeout(20):
            answer = await self.call.read()
        if answer is grpc.aio.EOF:
            code = await self.call.code()
            if code is not Code.OK:
                await self.call  # raises what it is
            raise EOFError
        return answer  # type: ignore[no-any-return]


@contextlib.asynccontextmanager
async def talking(router: Sessions, hello: pb.PodHello | None = None) -> AsyncIterator[Talk]:
    call = router.stub.PodLink()
    talk = Talk(call)
    if hello is not None:
        await talk.say(hello=hello)
    try:
        yield talk
    finally:
        call.cancel()


async def refuses_to_hear(router: Sessions, *said: dict[str, Any]) -> str:
    """Which field is named when a pod begins like that."""
    call = router.stub.PodLink()
    with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        for one in said:
            await call.write(pb.PodLinkRequest(**one))
    with refused(Code.INVALID_ARGUMENT, "REASON_INVALID_FIELD") as told:
        while await call.read() is not grpc.aio.EOF:
            pass
        await call  # type: ignore[misc]
    return str(told.metadata["field"])


async def test_a_link_that_begins_or_goes_on_wrongly_is_ended_by_the_name_of_the_field(cloud: Cloud) -> None:
    router = await cloud.router()
    hello = {"hello": pb.PodHello(pod_id="gate-9")}
    life = pod_pb2.PodIncarnation(epoch=1, number=1)
    assert await refuses_to_hear(router, {"heartbeat": pb.PodHeartbeat(nonce=1)}) == "hello"
    assert await refuses_to_hear(router, {"hello": pb.PodHello()}) == "hello.pod_id"
    assert await refuses_to_hear(router, {"hello": pb.PodHello(pod_id="a", session_count=1)}) == "hello.session_count"
    assert (
        await refuses_to_hear(router, {"hello": pb.PodHello(pod_id="a", incarnation=pod_pb2.PodIncarnation(epoch=1))})
        == "hello.incarnation.number"
    )
    assert (
        await refuses_to_hear(
            router,
            {"hello": pb.PodHello(pod_id="a", incarnation=life, session_count=2)},
            {"heartbeat": pb.PodHeartbeat(nonce=1)},
        )
        == "announce"
    )
    assert await refuses_to_hear(router, hello, hello) == "hello"
    assert await refuses_to_hear(router, hello, {}) == "said"
    assert await refuses_to_hear(router, hello, {"heartbeat": pb.PodHeartbeat()}) == "heartbeat.nonce"
    unasked = pb.PodAnnounce(sessions=[pb.HeldSession(workspace_id="w", session_id="s", user_id="u", agent_id="a", fence=1)])
    assert await refuses_to_hear(router, hello, {"announce": unasked}) == "announce"
    assert await refuses_to_hear(router, hello, {"announce": pb.PodAnnounce()}) == "announce.sessions"


async def test_a_call_that_is_wrong_is_refused_by_itself(cloud: Cloud) -> None:
    router = await cloud.router()
    async with talking(router, pb.PodHello(pod_id="gate-1")) as link:
        assert (await link.told()).HasField("welcome")
        await link.say(open=pb.PodOpen(call_id=7, workspace_id=cloud.ws, session_id="s\n", user_id="ada", agent_id="agent"))
        refusal = (await link.told()).refused
        assert (refusal.call_id, refusal.reason) == (7, Reason.REASON_INVALID_FIELD)
        assert "open.session_id" in refusal.message
        await link.say(touch=pb.PodTouch(call_id=8, workspace_id=cloud.ws, session_id="s", fence=1))
        refusal = (await link.told()).refused
        assert (refusal.call_id, refusal.reason) == (8, Reason.REASON_SESSION_LOST)
        await link.say(close=pb.PodClose(call_id=9, workspace_id=cloud.ws, session_id="s", fence=1))
        refusal = (await link.told()).refused
        assert (refusal.call_id, refusal.reason) == (9, Reason.REASON_INVALID_FIELD)


async def test_thousands_of_opens_at_once_are_answered_each_once_and_the_link_lives(cloud: Cloud) -> None:
    router = await cloud.router(user_sessions_max=10_000)
    async with talking(router, pb.PodHello(pod_id="gate-1")) as link:
        assert (await link.told()).HasField("welcome")

        async def ask() -> None:
            for number in range(1, 2001):
                await link.say(open=an_open(cloud, number))
            await link.say(heartbeat=pb.PodHeartbeat(nonce=5, session_count=0))

        asking = asyncio.create_task(ask())
        opened: set[int] = set()
        shed: set[int] = set()
        alive = False
        while len(opened) + len(shed) < 2000 or not alive:
            told = await link.told()
            match told.WhichOneof("told"):
                case "opened":
                    opened.add(told.opened.call_id)
                case "refused":
                    assert told.refused.reason == Reason.REASON_OVERLOADED
                    shed.add(told.refused.call_id)
                case "alive":
                    alive = True
        await asking
        assert opened | shed == set(range(1, 2001))
        assert await router.count() == len(opened)


async def test_many_sessions_are_in_the_table_as_soon_as_they_are_opened(cloud: Cloud) -> None:
    router = await cloud.router(user_sessions_max=10_000)
    async with talking(router, pb.PodHello(pod_id="gate-1")) as link:
        assert (await link.told()).HasField("welcome")
        waiting = asyncio.Semaphore(200)

        async def ask() -> None:
            for number in range(1, 1001):
                await waiting.acquire()
                await link.say(open=an_open(cloud, number))

        asking = asyncio.create_task(ask())
        for _ in range(1000):
            assert (await link.told()).opened.listed
            waiting.release()
        await asking
        assert await router.count() == 1000


@pytest.mark.parametrize("reads", [False, True])
async def test_a_pod_that_does_not_read_or_acknowledge_is_cut_off_and_its_sessions_stay(cloud: Cloud, reads: bool) -> None:
    router = await cloud.router()
    async with talking(router, pb.PodHello(pod_id="gate-1")) as link:
        assert (await link.told()).HasField("welcome")
        await link.say(open=pb.PodOpen(call_id=1, workspace_id=cloud.ws, session_id="s-1", user_id="ada", agent_id="agent"))
        assert (await link.told()).HasField("opened")
        sent = 0
        while (await router.send(b"x" * 60_000, session_id="s-1")).sent:
            sent += 1
            assert sent < 100
            if reads:
                assert (await link.told()).HasField("delivery")
        assert sent >= 10
        if reads:
            assert sent == 4 * 1024 * 1024 // 60_000
    assert await router.ids() == {"s-1"}
