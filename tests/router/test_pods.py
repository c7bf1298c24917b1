"""C10: pods that die, stand still, move and come back; Redis that forgets; and who holds a session meanwhile.

Safety is judged at every moment; that something happens at all is waited for. Bugs are planted to see that they are found.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.router.conftest import refused
from tests.router.pods import Cloud, Pod, Sessions, a_cloud, a_ground, settled
from tests.router.test_revocation import House
from tests.router.test_sessions import an_open, refuses, talking
from tests.waiting import until
from twofold.errors.v1.reason_pb2 import Reason
from twofold.pod import HeldSession, SessionRefused
from twofold.registry.v1 import pod_pb2, session_pb2
from twofold.router.v1 import session_pb2 as pb
from twofold_chassis.clocks import boot_s
from twofold_chassis.redis import RedisLink
from twofold_chassis.settings import RedisSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_router import keys
from twofold_router.links import Links
from twofold_router.pods import Beat, Kept
from twofold_router.registry_pods import RegistryPods
from twofold_router.session_table import RedisLeases, RedisTable
from twofold_router.sessions import Incarnation, PodLife, Session, SessionHeld, SessionKey, SessionUnknown

Code = grpc.StatusCode
IDLE = session_pb2.SESSION_CLOSE_REASON_IDLE
LEASE_S = 1.0
SHORT: dict[str, Any] = {"pod_lease_ms": int(LEASE_S * 1000), "pod_heartbeat_ms": 100}
SCRIPT = Path(__file__).with_name("pod_process.py")


@pytest.fixture(scope="module")
async def ground(postgres_server: EmbeddedPostgres, servers_folder: Path) -> AsyncIterator[tuple[House, EmbeddedRedis]]:
    async with a_ground(postgres_server, servers_folder, "ground_of_pods") as ground:
        yield ground


@pytest.fixture
async def cloud(ground: tuple[House, EmbeddedRedis], workspace_id: str) -> AsyncIterator[Cloud]:
    async with a_cloud(ground, workspace_id) as cloud:
        yield cloud


class Process:
    """A pod that is a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[list[str]] = []
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().split())

    def said(self, word: str) -> list[list[str]]:
        return [line[1:] for line in self.lines if line[0] == word]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextlib.asynccontextmanager
async def pod_process(cloud: Cloud, router: Sessions, *, sessions: int = 3) -> AsyncIterator[Process]:
    """A pod as a process that has opened its sessions."""
    arguments = (router.target, "gate-9", cloud.ws, str(sessions))
    process = await asyncio.create_subprocess_exec(sys.executable, str(SCRIPT), *arguments, stdout=asyncio.subprocess.PIPE)
    pod = Process(process)
    try:
        await until(lambda: len(pod.said("opened")) == sessions and bool(pod.said("life")), "the pod has opened")
        yield pod
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await pod.reading


async def verdict(cloud: Cloud, life: list[str]) -> pod_pb2.PodState.ValueType:
    incarnation = pod_pb2.PodIncarnation(epoch=int(life[0]), number=int(life[1]))
    request = pod_pb2.CheckPodRequest(pod_id="gate-9", incarnation=incarnation)
    return (await cloud.house.api.pods.CheckPod(request)).state


# Death -----------------------------------------------------------------------------------------------------------------


async def test_c10_the_sessions_of_a_killed_pod_are_gone_and_may_be_taken_over(cloud: Cloud) -> None:
    router, other = await cloud.router(**SHORT), await cloud.router(**SHORT)
    second = await cloud.pod(other, pod_id="gate-2")
    async with pod_process(cloud, router) as pod:
        ids = {session_id for session_id, _ in pod.said("opened")}
        fences = {session_id: int(fence) for session_id, fence in pod.said("opened")}
        assert await other.ids() == ids
        with refuses("REASON_SESSION_HELD"):
            await cloud.open(second, take_over=min(ids))
        pod.signal(signal.SIGKILL)
        killed_at = boot_s()

        async def gone() -> bool:
            return await other.ids() == set()

        await until(gone)
        # How soon is bounded by lease + 1 s; here, where everybody else runs as well, by ten times that.
        assert boot_s() < killed_at + 10 * (LEASE_S + 1)
        life = pod.said("life")[0]

        async def dead() -> bool:
            return await verdict(cloud, life) == pod_pb2.POD_STATE_DEAD

        await until(dead)
    taken = await taken_over(cloud, second, min(ids))
    assert taken.fence > fences[taken.session_id]
    found = (await router.get(taken.session_id)).session
    assert (found.pod_id, found.fence) == ("gate-2", taken.fence)
    with refuses("REASON_SESSION_UNKNOWN"):
        await cloud.open(second, take_over="a session that never was")

    async def told() -> bool:
        listed = await cloud.house.api.sessions.ListSessions(
            session_pb2.ListSessionsRequest(workspace_id=cloud.ws, pod_id="gate-9")
        )
        return {one.close_reason for one in listed.sessions} == {session_pb2.SESSION_CLOSE_REASON_POD_DEAD}

    await until(told)


async def taken_over(cloud: Cloud, pod: Pod, session_id: str) -> Any:
    """The session, once it may be taken over."""
    while True:
        try:
            return await cloud.open(pod, take_over=session_id)
        except SessionRefused as refusal:
            if refusal.reason != "REASON_SESSION_HELD":
                raise
            await asyncio.sleep(0.05)


async def back_from_the_dead(cloud: Cloud) -> bool:
    """A pod stands still for longer than its lease while Redis forgets, and goes on. Whether it was fenced."""
    router = await cloud.router(**SHORT)
    async with pod_process(cloud, router, sessions=2) as pod:
        life = pod.said("life")[0]
        ids = {session_id for session_id, _ in pod.said("opened")}
        pod.signal(signal.SIGSTOP)
        ended = keys.pods_ended()

        async def cleared_up() -> bool:
            known = await cloud.asked("HKEYS", keys.pod_leases())
            return b"gate-9" not in known and not await cloud.asked("EXISTS", ended)

        await until(cleared_up)
        await cloud.asked("FLUSHALL")
        pod.signal(signal.SIGCONT)

        async def decided() -> bool:
            return len(pod.said("life")) > 1 or await router.ids() == ids

        await until(decided)
        if await router.ids() == ids:
            return False
        await until(lambda: len(pod.said("over")) == len(ids))
        assert {tuple(line) for line in pod.said("over")} == {(one, "FENCED") for one in ids}
        assert list(map(int, pod.said("life")[1])) > list(map(int, life))
        assert await router.ids() == set()
        assert await verdict(cloud, life) == pod_pb2.POD_STATE_DEAD
        return True


async def test_c10_a_pod_that_stood_still_too_long_is_fenced_for_ever_also_if_redis_forgets(cloud: Cloud) -> None:
    assert await back_from_the_dead(cloud)


async def test_c10_what_is_dead_says_nothing_any_more(cloud: Cloud) -> None:
    router = await cloud.router(**SHORT)
    second = await cloud.pod(router, pod_id="gate-2")
    hello = pb.PodHello(pod_id="gate-1")
    async with talking(router, hello) as link:
        life = (await link.told()).welcome.incarnation
        await link.say(open=an_open(cloud, 1))
        fence = (await link.told()).opened.fence
        # No heartbeat: the router ends the link, and then the pod is dead.
        with refused(Code.ABORTED, "REASON_SESSION_LOST"):
            await link.told()
    taken = await taken_over(cloud, second, "s-1")
    assert taken.fence > fence
    for count in (0, 1):
        old = pb.PodHello(pod_id="gate-1", incarnation=life, session_count=count)
        async with talking(router, old) as link:
            held = pb.HeldSession(workspace_id=cloud.ws, session_id="s-1", user_id="ada", agent_id="agent", fence=fence)
            if count:
                await link.say(announce=pb.PodAnnounce(sessions=[held]))
            assert (await link.told()).HasField("fenced")
            with pytest.raises(EOFError):
                await link.told()
    assert (await router.get("s-1")).session.pod_id == "gate-2"
    assert second.holds(taken)


async def test_c10_a_pod_that_others_have_declared_dead_is_fenced_although_it_sends_heartbeats(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = await cloud.router(pod_lease_ms=2000)
    for forgets in (True, False):  # learnt when Redis has forgotten the pod, or by asking now and then
        monkeypatch.setattr("twofold_router.links._ASKED_EACH_S", 1e9 if forgets else 0)
        pod = await cloud.pod(router, pod_id=f"gate-{forgets}")
        session = await cloud.open(pod)
        life = pod.incarnation
        assert life is not None
        incarnation = pod_pb2.PodIncarnation(epoch=life[0], number=life[1])
        request = pod_pb2.MarkPodDeadRequest(pod_id=f"gate-{forgets}", incarnation=incarnation, reason="by hand")
        await cloud.house.api.pods.MarkPodDead(request)
        if forgets:
            await cloud.asked("FLUSHALL")
        await pod.hears(session, "FENCED")
        await until(lambda pod=pod, life=life: pod.incarnation not in (None, life))  # type: ignore[misc]


async def test_c10_an_older_life_of_a_pod_is_fenced_by_the_newer_one(cloud: Cloud) -> None:
    router, other = await cloud.router(), await cloud.router()
    async with contextlib.AsyncExitStack() as links:
        first = await links.enter_async_context(talking(router, pb.PodHello(pod_id="gate-1")))
        old = (await first.told()).welcome.incarnation
        then = await links.enter_async_context(talking(other, pb.PodHello(pod_id="gate-1")))
        assert (await then.told()).welcome.incarnation.number > old.number
        await first.say(heartbeat=pb.PodHeartbeat(nonce=1))
        assert (await first.told()).HasField("fenced")
        await then.say(heartbeat=pb.PodHeartbeat(nonce=1))
        assert (await then.told()).HasField("alive")
        async with talking(other, pb.PodHello(pod_id="gate-1", incarnation=old)) as again:
            assert (await again.told()).HasField("fenced")
        unknown = pod_pb2.PodIncarnation(epoch=old.epoch, number=old.number + 1000)
        async with talking(other, pb.PodHello(pod_id="gate-1", incarnation=unknown)) as never:
            assert (await never.told()).HasField("fenced")
        await then.say(heartbeat=pb.PodHeartbeat(nonce=2))
        assert (await then.told()).HasField("alive")


# Redis forgets ---------------------------------------------------------------------------------------------------------


async def test_c10_after_a_flush_the_table_equals_what_living_pods_hold(cloud: Cloud) -> None:
    routers = [await cloud.router(), await cloud.router()]
    pods = [await cloud.pod(routers[index % 2], pod_id=f"gate-{index}") for index in range(3)]
    sessions = [await cloud.open(pod) for pod in pods for _ in range(5)]
    lives = [pod.incarnation for pod in pods]
    for _ in range(3):
        await cloud.asked("FLUSHALL")
        closed = sessions.pop()
        await pods[-1].close(closed)
        sessions.append(await cloud.open(pods[-1]))

        async def equal() -> bool:
            listed = (await routers[0].page(page_size=500)).sessions
            return {(one.session_id, one.fence) for one in listed} == {(one.session_id, one.fence) for one in sessions}

        await until(equal)
    assert [pod.incarnation for pod in pods] == lives
    assert not any(pod.over for pod in pods)
    for pod in pods:
        assert {tuple(one) for one in pod.sessions.values()} <= {tuple(one) for one in sessions}


async def test_c10_a_session_is_not_lost_to_a_table_that_it_is_not_announced_in_yet(cloud: Cloud) -> None:
    """Somebody looks, and so begins the table anew, before the pod's next heartbeat announces what it holds."""
    router = await cloud.router(pod_heartbeat_ms=1000)
    pod = await cloud.pod(router)
    session = await cloud.open(pod)
    for _ in range(3):
        await cloud.asked("FLUSHALL")
        await router.ids()
        await pod.touch(session)
        assert pod.sessions
    await until_listed(router, session)
    assert not pod.over


async def test_c10_who_takes_over_is_not_given_the_fence_of_before_out_of_what_its_router_remembers(cloud: Cloud) -> None:
    """The pod named the session among all that it held, gave it up, and its router still believes that it holds it."""
    router = await cloud.router(redis=RedisSettings(host="127.0.0.1", port=1, budget_ms=50))
    async with talking(router, pb.PodHello(pod_id="gate-1")) as link:
        assert (await link.told()).HasField("welcome")
        await link.say(open=an_open(cloud, 1))
        fence = (await link.told()).opened.fence
        session: dict[str, Any] = {"workspace_id": cloud.ws, "session_id": "s-1"}
        closing = pb.PodClose(
            call_id=2, fence=fence, give_up=True, reason=session_pb2.SESSION_CLOSE_REASON_DRAINED, **session
        )
        await link.say(close=closing)
        assert (await link.told()).done.call_id == 2
        for nonce in (3, 4):
            await link.say(heartbeat=pb.PodHeartbeat(nonce=nonce, session_count=1))
        asked = {(await link.told()).WhichOneof("told") for _ in range(3)}
        assert asked == {"alive", "reannounce"}
        one = pb.HeldSession(user_id="ada", agent_id="agent", fence=fence, **session)
        await link.say(announce=pb.PodAnnounce(sessions=[one]))
        await link.say(heartbeat=pb.PodHeartbeat(nonce=5, session_count=1))
        assert (await link.told()).alive.nonce == 5
        again = an_open(cloud, 1)
        again.call_id, again.take_over = 6, True
        await link.say(open=again)
        assert (await link.told()).refused.reason == Reason.REASON_REDIS_UNAVAILABLE


async def until_listed(router: Sessions, session: HeldSession) -> None:
    async def listed() -> bool:
        return session.session_id in await router.ids()

    await until(listed)


async def test_c10_a_redis_of_yesterday_shows_nobody_who_has_left_since(cloud: Cloud) -> None:
    router = await cloud.router()
    pod = await cloud.pod(router)
    old, kept = await cloud.open(pod), await cloud.open(pod)
    await cloud.asked("SAVE")
    await pod.close(old)
    new = await cloud.open(pod)
    await cloud.server.kill()
    await cloud.server.start()

    async def equal() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            ids = await router.ids()
            assert old.session_id not in ids
            return ids == {kept.session_id, new.session_id}
        return False

    await until(equal)


async def test_c10_a_while_without_redis_kills_no_pod(cloud: Cloud) -> None:
    lease_s = 3.0
    routers = [await cloud.router(pod_lease_ms=3000, pod_heartbeat_ms=100) for _ in range(2)]
    pods = [await cloud.pod(router, pod_id=f"gate-{index}") for index, router in enumerate(routers)]
    sessions = [await cloud.open(pod) for pod in pods]
    cloud.silence()
    try:
        beat_at = boot_s()
        while boot_s() < beat_at + 1.2 * lease_s:  # longer than every lease that Redis knows of
            await settled(*pods)
            assert all(pod.holds(session) for pod, session in zip(pods, sessions, strict=True))
    finally:
        cloud.server.resume()

    async def back() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            return await routers[0].ids() == {session.session_id for session in sessions}
        return False

    await until(back)
    assert not any(pod.over for pod in pods)


async def test_c10_what_is_missing_in_the_table_is_put_back_and_what_is_too_much_removed(
    cloud: Cloud, table: RedisTable
) -> None:
    router = await cloud.router()
    pod = await cloud.pod(router)
    touched, other = await cloud.open(pod), await cloud.open(pod)
    generation = (await table.news(cloud.ws, 0)).generation
    held = [await table.find(SessionKey(cloud.ws, session.session_id)) for session in (touched, other)]
    for session in held:  # as if they were evicted
        assert session is not None
        assert await table.close(session, by_others=False)
    await pod.touch(touched)
    assert pod.holds(touched)
    # As if the command of a router that had stood still came late.
    life = held[0].life if held[0] is not None else PodLife("", Incarnation(0, 0))
    late = a_session(cloud.ws, fence=5, session_id="late")._replace(life=life)
    assert (await table.open(generation, late, take_over=False, per_user_max=100)).refusal is None

    async def equal() -> bool:
        return await router.ids() == {touched.session_id, other.session_id}

    await until(equal)
    assert not pod.over


# Moving ----------------------------------------------------------------------------------------------------------------


async def test_a_pod_goes_on_at_another_router_with_all_it_holds(cloud: Cloud) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(cloud.routing())
        other = await cloud.router()
        pod = await cloud.pod(first, other)
        await cloud.open(pod)
        sessions = set(pod.sessions.values()) | {await cloud.open(pod)}
        life = pod.incarnation
        listed = await other.stub.ListLinkedPods(pb.ListLinkedPodsRequest())
        before = listed.pods[0].router_id
        await stack.aclose()

        async def elsewhere() -> bool:
            listed = await other.stub.ListLinkedPods(pb.ListLinkedPodsRequest())
            return [one.router_id != before for one in listed.pods] == [True] or pod.serves

        await until(elsewhere)
        await pod.linked()
        await settled(pod)
        assert (pod.incarnation, set(pod.sessions.values()), pod.over) == (life, sessions, [])
        assert await other.ids() == {session.session_id for session in sessions}
        assert (await other.send(b"here", session_id=min(sessions).session_id)).sent == 1


async def test_a_pod_has_one_link_the_newest(cloud: Cloud) -> None:
    router, other = await cloud.router(), await cloud.router()
    async with talking(router, pb.PodHello(pod_id="gate-1")) as link:
        life = (await link.told()).welcome.incarnation
        async with talking(other, pb.PodHello(pod_id="gate-1", incarnation=life)) as newer:
            assert (await newer.told()).HasField("welcome")
            await link.say(heartbeat=pb.PodHeartbeat(nonce=1))
            with refused(Code.ABORTED, "REASON_SESSION_LOST"):
                await link.told()
            async with talking(other, pb.PodHello(pod_id="gate-1", incarnation=life)) as newest:
                assert (await newest.told()).HasField("welcome")
                with refused(Code.ABORTED, "REASON_SESSION_LOST"):
                    await newer.told()


async def test_a_living_pod_gives_a_session_up_before_another_has_it(cloud: Cloud) -> None:
    router, other = await cloud.router(), await cloud.router()
    first, second = await cloud.pod(router, pod_id="gate-1"), await cloud.pod(other, pod_id="gate-2")
    session = await cloud.open(first)
    with refuses("REASON_SESSION_HELD"):
        await cloud.open(second, take_over=session.session_id)
    assert first.holds(session)
    await first.close(session, give_up=True)
    assert await router.ids() == set()
    with refuses("REASON_SESSION_UNKNOWN"):  # it is ada's
        await cloud.open(second, "root", take_over=session.session_id)
    taken = await cloud.open(second, take_over=session.session_id)
    assert taken.fence > session.fence
    assert taken.open_ms == session.open_ms
    assert await router.ids(pod_id="gate-2") == {session.session_id}


async def test_what_a_pod_holds_and_what_its_router_thinks_become_the_same(cloud: Cloud) -> None:
    router = await cloud.router()
    async with talking(router, pb.PodHello(pod_id="gate-1")) as link:
        assert (await link.told()).HasField("welcome")
        for number in (1, 2):
            await link.say(open=an_open(cloud, number))
            fence = (await link.told()).opened.fence
        for nonce in (1, 2):  # it has lost the first one, and does not know that
            await link.say(heartbeat=pb.PodHeartbeat(nonce=nonce, session_count=1))
        told = {(await link.told()).WhichOneof("told") for _ in range(3)}
        assert told == {"alive", "reannounce"}
        held = pb.HeldSession(workspace_id=cloud.ws, session_id="s-2", user_id="ada", agent_id="agent", fence=fence)
        await link.say(announce=pb.PodAnnounce(sessions=[held]))
        await link.say(heartbeat=pb.PodHeartbeat(nonce=3, session_count=1))
        assert (await link.told()).HasField("alive")

        async def same() -> bool:
            return await router.ids() == {"s-2"}

        await until(same)


async def test_a_pod_judges_its_lease_by_itself(cloud: Cloud) -> None:
    async with contextlib.AsyncExitStack() as stack:
        router = await stack.enter_async_context(cloud.routing(**SHORT))
        pod = await cloud.pod(router)
        session = await cloud.open(pod)
        assert pod.holds(session)
        await stack.aclose()
        await until(lambda: not pod.serves)
        assert not pod.holds(session)


# Planted bugs ----------------------------------------------------------------------------------------------------------


async def test_c10_planted_a_verdict_that_is_not_durable_is_noticed(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forgotten(*_: Any) -> None:
        """Only Redis is told."""

    monkeypatch.setattr(RegistryPods, "mark_dead", forgotten)
    assert not await back_from_the_dead(cloud)


def a_session(ws: str, pod_id: str = "gate-1", *, fence: int = 0, session_id: str = "s-1") -> Session:
    life = PodLife(pod_id, Incarnation(1, sum(map(ord, pod_id))))
    return Session(SessionKey(ws, session_id), "ada", "agent", life, fence, 1, 1)


@pytest.fixture
async def table(cloud: Cloud) -> AsyncIterator[RedisTable]:
    link = RedisLink(cloud.redis)
    yield RedisTable(link, lease_s=0)
    await link.close()


async def opened(table: RedisTable, session: Session, *, take_over: bool = False) -> Session:
    generation = (await table.news(session.key.workspace_id, 0)).generation
    placed = await table.open(generation, session, take_over=take_over, per_user_max=100)
    assert placed.refusal is None, placed
    return session._replace(fence=placed.fence)


class GetThenDelete(RedisTable):
    """Looks who holds the session, and then deletes it."""

    between = staticmethod(lambda: asyncio.sleep(0))

    async def close(self, session: Session, *, by_others: bool) -> bool:
        found = await self.find(session.key)
        if found is None or found.fence != session.fence:
            return False
        await self.between()
        generation = (await self.news(session.key.workspace_id, 0)).generation
        return bool(await self._link.call("DEL", keys.session(*session.key[:1], generation, session.key.session_id)))


@pytest.mark.parametrize("kind", [RedisTable, GetThenDelete])
async def test_c10_planted_get_then_delete_removes_what_another_pod_holds(
    cloud: Cloud, table: RedisTable, kind: type[RedisTable]
) -> None:
    first = await opened(table, a_session(cloud.ws, fence=10))
    later = []

    async def meanwhile() -> None:
        assert await table.give_up(first)
        later.append(await opened(table, a_session(cloud.ws, "gate-2"), take_over=True))

    careless = kind(table._link, lease_s=0)
    if isinstance(careless, GetThenDelete):
        careless.between = meanwhile
        assert await careless.close(first, by_others=False)
        assert await table.find(first.key) is None  # although gate-2 holds it
    else:
        await meanwhile()
        assert not await careless.close(first, by_others=False)
        assert await table.find(first.key) == later[0]


@pytest.mark.parametrize("planted", [False, True])
async def test_c10_planted_an_id_that_is_used_again_has_a_higher_fence(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, planted: bool
) -> None:
    if planted:
        monkeypatch.setattr(Links, "_new_fence", lambda *_: 1)
    router = await cloud.router()
    fences = []
    async with talking(router, pb.PodHello(pod_id="gate-1")) as link:
        assert (await link.told()).HasField("welcome")
        for _ in range(5):
            await link.say(open=an_open(cloud, 1))
            fences.append((await link.told()).opened.fence)
            await link.say(
                close=pb.PodClose(call_id=2, workspace_id=cloud.ws, session_id="s-1", fence=fences[-1], reason=IDLE)
            )
            assert (await link.told()).HasField("done")
            await cloud.asked("FLUSHALL")
    assert (sorted(set(fences)) == fences) is not planted


@pytest.mark.parametrize("planted", [False, True])
async def test_c10_planted_a_fence_that_begins_anew_lets_a_former_holder_back(
    cloud: Cloud, table: RedisTable, planted: bool
) -> None:
    """An id that is used again after a loss: what was held before it must not win over what is held now."""
    former = await opened(table, a_session(cloud.ws, fence=1_700_000_000_000))
    await cloud.asked("FLUSHALL")
    fence = 1 if planted else 1_700_000_000_001  # the clock's, as links.py has it
    now = await opened(table, a_session(cloud.ws, "gate-2", fence=fence))
    generation = (await table.news(cloud.ws, 0)).generation
    kept = await table.announce(generation, former)
    assert kept is (Kept.KEPT if planted else Kept.LOST)
    assert (await table.find(now.key) == now) is not planted


async def test_c10_who_takes_over_has_a_higher_fence_than_any_clock_gave(cloud: Cloud, table: RedisTable) -> None:
    ahead = 9_000_000_000_000  # a router whose clock is far ahead
    first = await opened(table, a_session(cloud.ws, fence=ahead))
    assert await table.give_up(first)
    second = await opened(table, a_session(cloud.ws, "gate-2"), take_over=True)
    assert second.fence == ahead + 1
    generation = (await table.news(cloud.ws, 0)).generation
    assert await table.touch(generation, first, 5) is Kept.LOST
    assert not await table.give_up(first)
    assert not await table.end(first)
    assert await table.touch(generation, second, 5) is Kept.KEPT


async def test_the_table_refuses_what_is_held_or_unknown(cloud: Cloud, table: RedisTable) -> None:
    first = await opened(table, a_session(cloud.ws, fence=5))
    generation = (await table.news(cloud.ws, 0)).generation
    for fence in (5, 7):  # a repeat, on the same link and on another
        again = await table.open(generation, a_session(cloud.ws, fence=fence), take_over=False, per_user_max=100)
        assert again.fence == fence
    late = await table.open(generation, a_session(cloud.ws, fence=6), take_over=False, per_user_max=100)
    assert isinstance(late.refusal, SessionHeld)  # of a link that is gone
    assert not await table.close(first, by_others=False)  # likewise
    for asked, refusal in ((first, SessionHeld), (a_session(cloud.ws, session_id="s-2"), SessionUnknown)):
        other = asked._replace(life=PodLife("gate-2", Incarnation(1, 2)))
        placed = await table.open(generation, other, take_over=True, per_user_max=100)
        assert isinstance(placed.refusal, refusal)
    assert (await table.open("another", first, take_over=False, per_user_max=100)).anew


async def test_c10_what_another_redis_wrote_is_not_seen(cloud: Cloud, table: RedisTable) -> None:
    """A snapshot of before, or the content of a former master, is of another process."""
    leases = RedisLeases(table._link, router_id="router-1", lease_s=0.3)
    first = await opened(table, a_session(cloud.ws, fence=5))
    assert await leases.hello(first.life, "")
    await until_overdue(leases, first.life)
    generation = (await table.news(cloud.ws, 0)).generation
    await cloud.asked("SET", keys.session_generation(cloud.ws), f"{'0' * 40}:{generation}")
    await cloud.asked("HSET", keys.pod_leases(), "\tmarker", "0" * 40)
    assert await table.touch(generation, first, 5) is Kept.ANEW
    assert await table.find(first.key) is None
    assert (await leases.linked(), await leases.overdue()) == ([], [])
    assert await leases.beat(first.life) is Beat.MISSING
    assert await leases.hello(first.life._replace(pod_id="gate-2"), "")
    assert await leases.beat(first.life) is Beat.MISSING  # the table was emptied


async def until_overdue(leases: RedisLeases, life: PodLife) -> None:
    """Returns once it is. Looks as often as routers do: who looks too seldom finds nobody for a lease."""
    while life not in await leases.overdue():  # noqa: ASYNC110  (nothing else tells it)
        await asyncio.sleep(0)


async def test_c10_nobody_is_overdue_for_a_lease_after_a_while_in_which_nobody_could_look(
    cloud: Cloud, table: RedisTable
) -> None:
    leases = RedisLeases(table._link, router_id="router-1", lease_s=0.3)
    life = a_session(cloud.ws).life
    assert await leases.hello(life, "")
    await until_overdue(leases, life)
    looked = int(await cloud.asked("HGET", keys.pod_leases(), "\tlooked"))
    await cloud.asked("HSET", keys.pod_leases(), "\tlooked", looked - 60_000)
    assert await leases.overdue() == []
    assert await leases.overdue(life.pod_id) == []
    await until_overdue(leases, life)
    assert await leases.overdue(life.pod_id) == [life]


async def test_c10_what_a_dead_pod_held_is_taken_over_a_lease_after_the_verdict_and_not_before(
    cloud: Cloud, table: RedisTable
) -> None:
    """Until then the pod may hold it by the registry's word from before the verdict, where Redis was away for its router."""
    leased = RedisTable(table._link, lease_s=60)
    first = await opened(leased, a_session(cloud.ws, fence=5))
    assert await leased.end(first)
    assert await leased.find(first.key) is None
    generation = (await leased.news(cloud.ws, 0)).generation
    second = a_session(cloud.ws, "gate-2")
    assert isinstance((await leased.open(generation, second, take_over=True, per_user_max=9)).refusal, SessionHeld)
    record = keys.session(cloud.ws, generation, "s-1")
    free = int(await cloud.asked("HGET", record, "free"))
    await cloud.asked("HSET", record, "free", free - 60_000)
    assert (await opened(leased, second, take_over=True)).fence > first.fence
