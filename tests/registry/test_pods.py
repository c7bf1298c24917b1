"""Pods: incarnations that never repeat, and verdicts that are for ever."""

import asyncio
from typing import Any

import grpc
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.registry.stubs import Connection, Registry, invalid, refused, settings_of, taken
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import pod_pb2 as pb
from twofold_chassis.settings import DatabaseSettings
from twofold_registry.app import registry
from twofold_registry.pods import Incarnation, Pod, PodState

LIVE, DEAD, UNKNOWN = pb.POD_STATE_LIVE, pb.POD_STATE_DEAD, pb.POD_STATE_UNKNOWN


@pytest.fixture
def pod(workspace_id: str) -> str:
    """A pod id that no other test uses."""
    return f"pod-{workspace_id}"


async def register(api: Registry, pod: str, **values: Any) -> pb.PodIncarnation:
    return (await api.pods.RegisterPod(pb.RegisterPodRequest(pod_id=pod, **values))).incarnation


async def state(api: Registry, pod: str, incarnation: pb.PodIncarnation) -> pb.PodState.ValueType:
    return (await api.pods.CheckPod(pb.CheckPodRequest(pod_id=pod, incarnation=incarnation))).state


async def mark(api: Registry, pod: str, incarnation: pb.PodIncarnation, reason: str = "lease ended") -> bool:
    request = pb.MarkPodDeadRequest(pod_id=pod, incarnation=incarnation, reason=reason)
    return (await api.pods.MarkPodDead(request)).marked


async def listed(api: Registry, state: pb.PodState.ValueType = pb.POD_STATE_UNSPECIFIED) -> dict[str, pb.Pod]:
    """All pods in this state, page by page."""
    found: dict[str, pb.Pod] = {}
    request = pb.ListPodsRequest(state=state, page_size=2)
    while True:
        page = await api.pods.ListPods(request)
        assert list(found | {each.pod_id: each for each in page.pods}) == sorted([*found, *(p.pod_id for p in page.pods)])
        found |= {each.pod_id: each for each in page.pods}
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def place(incarnation: pb.PodIncarnation) -> tuple[int, int]:
    return incarnation.epoch, incarnation.number


async def test_a_pod_that_registers_again_is_another_one_and_the_former_is_dead(api: Registry, pod: str) -> None:
    first = await register(api, pod)
    assert await state(api, pod, first) == LIVE
    second = await register(api, pod)
    assert place(second) > place(first)
    assert [await state(api, pod, each) for each in (first, second)] == [DEAD, LIVE]


async def test_of_many_registrations_at_once_all_differ_and_one_is_alive(api: Registry, pod: str) -> None:
    given_out = await asyncio.gather(*(register(api, pod) for _ in range(20)))
    assert len({place(each) for each in given_out}) == 20
    alive = [each for each in given_out if await state(api, pod, each) == LIVE]
    assert alive == [max(given_out, key=place)]


async def test_a_repeated_registration_gets_the_incarnation_of_the_first_time(api: Registry, pod: str) -> None:
    request = pb.RegisterPodRequest(pod_id=pod, request_id=f"{pod}/r")
    answers = await asyncio.gather(*(api.pods.RegisterPod(request) for _ in range(20)))
    assert len({place(answer.incarnation) for answer in answers}) == 1
    later = await register(api, pod)
    assert (await api.pods.RegisterPod(request)).incarnation == answers[0].incarnation
    assert await state(api, pod, later) == LIVE
    with taken(Reason.REASON_REQUEST_REUSED):
        await register(api, f"{pod}-other", request_id=f"{pod}/r")


async def test_the_verdict_is_for_ever_and_the_first_reason_stays(api: Registry, pod: str) -> None:
    life = await register(api, pod, address="10.0.0.7:8080")
    assert (await listed(api, LIVE))[pod].address == "10.0.0.7:8080"
    with structlog.testing.capture_logs():
        assert await mark(api, pod, life, "lease ended")
        assert not await mark(api, pod, life, "something else")
    assert await state(api, pod, life) == DEAD
    told = (await listed(api, DEAD))[pod]
    assert (told.state, told.dead_reason, told.incarnation) == (DEAD, "lease ended", life)
    assert told.HasField("dead_time")
    assert told.HasField("register_time")
    assert told.marked_by
    assert pod not in await listed(api, LIVE)
    again = await register(api, pod)
    assert [await state(api, pod, each) for each in (life, again)] == [DEAD, LIVE]
    alive = (await listed(api, LIVE))[pod]
    assert (alive.dead_reason, alive.marked_by, alive.HasField("dead_time")) == ("", "", False)


async def test_a_death_is_told_in_the_log_once(api: Registry, pod: str) -> None:
    life = await register(api, pod)
    with structlog.testing.capture_logs() as logged:
        await asyncio.gather(*(mark(api, pod, life) for _ in range(10)))
    deaths = [entry for entry in logged if entry["event"] == "pod is dead"]
    assert [entry["pod_id"] for entry in deaths] == [pod]
    assert deaths[0]["reason"] == "lease ended"


async def test_a_late_verdict_on_a_former_life_leaves_the_newer_one_alone(api: Registry, pod: str) -> None:
    first, second = await register(api, pod), await register(api, pod)
    assert not await mark(api, pod, first)
    assert await state(api, pod, second) == LIVE


async def test_an_incarnation_that_nobody_knows_is_not_alive_and_can_be_marked_dead(
    api: Registry, owner: Connection, pod: str
) -> None:
    life = await register(api, pod)
    assert await state(api, f"{pod}-never", life) == UNKNOWN
    await owner.execute("DELETE FROM registry.pods WHERE pod_id = $1", pod)  # swept, or lost with a restored database
    assert await state(api, pod, life) == UNKNOWN
    with structlog.testing.capture_logs():
        assert await mark(api, pod, life)
    assert await state(api, pod, life) == DEAD
    assert not (await listed(api, DEAD))[pod].HasField("register_time")


async def test_an_incarnation_that_was_never_given_cannot_be_marked_dead(api: Registry, pod: str) -> None:
    life = await register(api, pod)
    for ahead in (
        pb.PodIncarnation(epoch=life.epoch, number=life.number + 1000),
        pb.PodIncarnation(epoch=life.epoch + 10**9, number=1),
    ):
        with invalid("incarnation"):
            await mark(api, pod, ahead)
        assert await state(api, pod, ahead) == UNKNOWN
    assert await state(api, pod, life) == LIVE


async def test_after_the_database_was_put_back_no_incarnation_is_given_twice(
    api: Registry, owner: Connection, pod: str
) -> None:
    number = await owner.fetchval("SELECT last_value FROM registry.pod_incarnation")
    kept = await register(api, pod)
    lost = [await register(api, pod) for _ in range(3)]
    # As in a copy from before these three: the row, the sequence, and another Postgres that it is restored in.
    await owner.execute("UPDATE registry.pods SET epoch = $2, number = $3 WHERE pod_id = $1", pod, *place(kept))
    await owner.execute("SELECT setval('registry.pod_incarnation', $1)", number)
    await owner.execute("UPDATE registry.registry_head SET fingerprint = 'another Postgres'")
    assert await state(api, pod, lost[-1]) == UNKNOWN
    new = [await register(api, pod) for _ in range(4)]
    assert all(place(each) > place(lost[-1]) for each in new)
    assert [await state(api, pod, each) for each in (kept, *lost, *new)] == [DEAD] * 7 + [LIVE]


async def test_many_are_checked_in_their_order(api: Registry, pod: str) -> None:
    lives = [await register(api, f"{pod}-{index}") for index in range(3)]
    with structlog.testing.capture_logs():
        await mark(api, f"{pod}-1", lives[1])
    asked = [pb.CheckPodRequest(pod_id=f"{pod}-{index % 4}", incarnation=lives[index % 3]) for index in range(500)]
    answer = await api.pods.BatchCheckPods(pb.BatchCheckPodsRequest(pods=asked))
    assert len(answer.states) == 500
    one_by_one = [await state(api, each.pod_id, each.incarnation) for each in asked[:12]]
    assert answer.states[:12] == one_by_one
    assert {LIVE, DEAD, UNKNOWN} == set(one_by_one)
    with invalid("pods"):
        await api.pods.BatchCheckPods(pb.BatchCheckPodsRequest(pods=[*asked, asked[0]]))
    with invalid("pods[1].incarnation"):
        await api.pods.BatchCheckPods(pb.BatchCheckPodsRequest(pods=[asked[0], pb.CheckPodRequest(pod_id="x")]))


async def test_to_ask_about_a_pod_keeps_it_known(api: Registry, owner: Connection, pod: str) -> None:
    former, life = await register(api, pod), await register(api, pod)
    age = "UPDATE registry.pods SET seen_at = now() - interval '2 hours' WHERE pod_id = $1"
    unseen = "SELECT seen_at < now() - interval '1 hour' FROM registry.pods WHERE pod_id = $1"
    await owner.execute(age, pod)
    await state(api, pod, former)
    assert await owner.fetchval(unseen, pod)
    await state(api, pod, life)
    assert not await owner.fetchval(unseen, pod)


async def test_pages_of_pods_belong_to_their_query(api: Registry, pod: str) -> None:
    for index in range(3):
        await register(api, f"{pod}-{index}")
    page = await api.pods.ListPods(pb.ListPodsRequest(state=LIVE, page_size=1))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_PAGE_TOKEN, "page_token"):
        await api.pods.ListPods(pb.ListPodsRequest(state=DEAD, page_size=1, page_token=page.next_page_token))
    with invalid("state"):
        await api.pods.ListPods(pb.ListPodsRequest(state=UNKNOWN))


async def test_two_registries_know_the_same_pods(api: Registry, database_settings: DatabaseSettings, pod: str) -> None:
    async with (
        registry(settings_of(database_settings)) as replica,
        grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}") as channel,
    ):
        other = Registry(channel)
        lives = await asyncio.gather(*(register(each, pod) for each in (api, other) * 5))
        newest = max(lives, key=place)
        with structlog.testing.capture_logs():
            marked = await asyncio.gather(*(mark(each, pod, newest) for each in (api, other) * 5))
        assert marked.count(True) == 1
        assert {await state(each, pod, life) for each in (api, other) for life in lives} == {DEAD}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.lists(some.sampled_from(["register", "mark newest", "mark any", "restart"]), max_size=12), some.randoms())
async def test_only_the_newest_life_that_nobody_marked_is_alive(
    api: Registry, owner: Connection, pod: str, acts: list[str], dice: Any
) -> None:
    name = f"{pod}-{dice.getrandbits(64):x}"
    lives: list[pb.PodIncarnation] = []
    dead: set[tuple[int, int]] = set()
    for act in acts:
        if act == "register":
            lives.append(await register(api, name))
        elif act == "restart":
            await owner.execute("UPDATE registry.registry_head SET fingerprint = 'another Postgres'")
        elif lives:
            life = lives[-1] if act == "mark newest" else dice.choice(lives)
            with structlog.testing.capture_logs():
                assert await mark(api, name, life) == (life is lives[-1] and place(life) not in dead)
            dead.add(place(life))
        for life in lives:
            expected = LIVE if life is lives[-1] and place(life) not in dead else DEAD
            assert await state(api, name, life) == expected
    assert sorted(map(place, lives)) == [place(life) for life in lives]
    assert len({place(life) for life in lives}) == len(lives)


def test_a_life_ahead_of_the_newest_known_one_is_unknown_and_one_behind_it_dead() -> None:
    known = Pod("p", "", Incarnation(5, 5), PodState.LIVE, None, None, "", "")
    verdicts = {asked: known.judge(Incarnation(*asked)) for asked in ((4, 9), (5, 4), (5, 5), (5, 6), (6, 1))}
    assert list(verdicts.values()) == [PodState.DEAD, PodState.DEAD, PodState.LIVE, PodState.UNKNOWN, PodState.UNKNOWN]
