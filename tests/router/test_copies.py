"""Copies of what the registry says: who reads, how often, what is kept and for how long, and what is never answered."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from twofold_chassis import call
from twofold_chassis.call import Call, Identity
from twofold_chassis.clocks import boot_s
from twofold_chassis.redis import RedisLink
from twofold_chassis.refusals import Overloaded, PeerUnavailable, Refusal
from twofold_chassis.revisions import Revision
from twofold_chassis.settings import RedisSettings
from twofold_router import keys
from twofold_router.cache import redis_permissions
from twofold_router.copies import Copies, Held, Limiter, Shared, Source, Told, Truth, Unstamped
from twofold_router.knowledge import Knowledge, Place, Stamp, Thing, user_thing
from twofold_router.permissions import PairKey, Permission, Verdict

EPOCH = 7
LEASE_S = 600.0
Answer = Told[str] | Unstamped[str]


class FakeTruth(Truth[str, str]):
    """The registry: every answer is the next number, at the newest revision."""

    def __init__(self, knowledge: Knowledge) -> None:
        self.knowledge = knowledge
        self.asked: list[tuple[str, Revision | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.news = asyncio.Event()
        self.answers: list[Answer | Refusal] = []
        self.before_answer: Callable[[], Any] = lambda: None

    def rests_on(self, key: str) -> Sequence[Thing]:
        return (user_thing("ws", key),)

    async def ask(self, key: str, least: Revision | None) -> Answer:
        self.asked.append((key, least))
        number, place = len(self.asked), self.knowledge.place
        self.news.set()
        self.news = asyncio.Event()
        await self.gate.wait()
        self.before_answer()
        answer = self.answers.pop(0) if self.answers else Told(str(number), Stamp(place.epoch, place.revision), is_no=False)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    async def came(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.asked) < count:
                await self.news.wait()


class FakeShared(Shared[str, str]):
    """Redis."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, str], Told[str]] = {}
        self.ttls: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[str] = []
        self.put_for: list[str] = []

    async def get(self, epoch: int, key: str) -> Told[str] | None:
        self.asked.append(key)
        await asyncio.sleep(0)
        return self.kept.get((epoch, key))

    async def put(self, key: str, told: Told[str], ttl_s: float) -> None:
        self.put_for.append(key)
        await self.gate.wait()
        self.kept[told.stamp.epoch, key] = told
        self.ttls.append(ttl_s)


class Room:
    """Copies with their surroundings, at revision 10 and with a lease."""

    def __init__(self, *, lease_s: float = LEASE_S, cold_max: int = 64, copies_max: int = 100) -> None:
        self.knowledge = Knowledge(lease_s=lease_s)
        self.knowledge.started(Place(EPOCH, 10, 1), resumed=False)
        self.hear()
        self.truth, self.shared, self.counts = FakeTruth(self.knowledge), FakeShared(), Counter[Source]()
        self.limiter = Limiter(cold_max)
        self.copies: Copies[str, str] = Copies(
            self.knowledge,
            self.truth,
            self.shared,
            self.limiter,
            count=lambda source: self.counts.update([source]),
            copies_max=copies_max,
            read_s=30.0,
        )

    def hear(self) -> None:
        self.knowledge.pinged(1, boot_s())
        self.knowledge.checked(1, self.knowledge.place.epoch, self.knowledge.place.revision, 5000.0, 3600.0, 1)

    def change(self, *users: str) -> None:
        revision = self.knowledge.place.revision + 1
        self.knowledge.changed(revision, revision, [user_thing("ws", user) for user in users])

    async def get(self, key: str, least: Revision | None = None) -> Held[str]:
        return await self.copies.get(key, least)


@pytest.fixture
def room() -> Room:
    return Room()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# One flight ------------------------------------------------------------------------------------------------------------


async def test_who_want_the_same_share_one_reading_and_then_its_copy(room: Room) -> None:
    first = await asyncio.gather(*(room.get(key) for key in ["ada"] * 50 + ["bob"] * 50))
    assert [key for key, _ in room.truth.asked] == ["ada", "bob"]
    assert {held.source for held in first} == {Source.REGISTRY}
    again = await room.get("ada")
    assert (again.value, again.source, len(room.truth.asked)) == ("1", Source.PROCESS, 2)


async def test_c5_10_000_cold_questions_for_k_keys_are_k_readings(room: Room) -> None:
    users = [f"user-{number}" for number in range(25)]
    await asyncio.gather(*(room.get(user) for user, _ in itertools.product(users, range(400))))
    assert sorted(key for key, _ in room.truth.asked) == sorted(users)


async def test_the_first_may_leave_and_the_others_have_their_answer(room: Room) -> None:
    room.truth.gate.clear()
    first, second = asyncio.create_task(room.get("ada")), asyncio.create_task(room.get("ada"))
    await room.truth.came(1)
    first.cancel()
    await asyncio.wait([first])
    room.truth.gate.set()
    assert (await second).value == "1"
    assert len(room.truth.asked) == 1


async def test_a_reading_has_its_own_time_and_not_what_its_first_caller_has_left(room: Room) -> None:
    left: list[float] = []
    room.truth.before_answer = lambda: left.append(call.current().left_s())

    async def hurried() -> Held[str]:
        call.enter(Call(Identity("ada"), "request", deadline=0.0))
        return await room.get("ada")

    await asyncio.create_task(hurried())
    assert 0 < left[0] <= 30.0


async def test_a_reading_ends_when_its_answer_would_be_too_old() -> None:
    room = Room(lease_s=0.05)
    room.truth.gate.clear()
    with pytest.raises(PeerUnavailable) as caught:
        await room.get("ada")
    assert caught.value.retry_after_s
    assert len(room.truth.asked) == 1


async def test_readings_that_are_under_way_end_with_the_router(room: Room) -> None:
    room.truth.gate.clear()
    asking = asyncio.create_task(room.get("ada"))
    await room.truth.came(1)
    await room.copies.close()
    await asyncio.wait([asking])
    assert asking.cancelled()


async def test_only_who_wants_what_lies_ahead_of_the_stream_has_a_reading_of_its_own(room: Room) -> None:
    room.truth.gate.clear()
    wanted = [None, Revision(EPOCH, 3), Revision(EPOCH, 10), Revision(EPOCH, 11), Revision(EPOCH, 11)]
    tasks = [asyncio.create_task(room.get("ada", least)) for least in wanted]
    await room.truth.came(2)
    await settled()
    assert room.truth.asked == [("ada", None), ("ada", Revision(EPOCH, 11))]
    room.change("bob")
    room.truth.gate.set()
    room.truth.answers = [Told("a", Stamp(EPOCH, 10), is_no=False), Told("b", Stamp(EPOCH, 11), is_no=False)]
    assert [(await task).value for task in tasks] == ["a", "a", "a", "b", "b"]


# What may not be answered ----------------------------------------------------------------------------------------------


async def test_what_changed_while_it_was_read_is_neither_answered_nor_kept(room: Room) -> None:
    old = Told("old", Stamp(EPOCH, 10), is_no=False)
    room.truth.gate.clear()
    asking = asyncio.create_task(room.get("ada"))
    await room.truth.came(1)
    room.change("ada")
    room.truth.answers = [old]
    room.truth.gate.set()
    held = await asking
    assert (held.value, held.stamp) == ("2", Stamp(EPOCH, 11))
    assert room.shared.kept == {(EPOCH, "ada"): Told("2", Stamp(EPOCH, 11), is_no=False)}
    assert (await room.get("ada")).value == "2"


async def test_what_changes_faster_than_it_can_be_read_is_not_known(room: Room) -> None:
    room.truth.before_answer = lambda: room.change("ada")
    with pytest.raises(PeerUnavailable) as caught:
        await room.get("ada")
    assert caught.value.retry_after_s
    assert len(room.truth.asked) == 5
    assert not room.shared.kept
    assert room.copies.find("ada", None, boot_s()) is None


async def test_what_is_held_is_looked_at_again_before_it_is_answered(room: Room) -> None:
    read, kept = await room.get("ada"), await room.get("ada")
    assert (read.sent_at is None, kept.sent_at is None) == (False, True)
    assert room.copies.may_answer("ada", read, None, boot_s())
    assert room.copies.may_answer("ada", kept, None, boot_s())
    assert not room.copies.may_answer("ada", read, None, (read.sent_at or 0) + LEASE_S)
    assert not room.copies.may_answer("ada", kept, None, room.knowledge.until())
    room.change("ada")
    assert not room.copies.may_answer("ada", read, None, boot_s())
    assert not room.copies.may_answer("ada", kept, None, boot_s())


async def test_what_another_epoch_says_is_answered_once_and_kept_nowhere(room: Room) -> None:
    room.truth.answers = [Told("new", Stamp(EPOCH + 1, 3), is_no=False)]
    held = await room.get("ada")
    assert (held.value, held.source) == ("new", Source.REGISTRY)
    assert room.copies.may_answer("ada", held, None, boot_s())
    assert not room.shared.kept
    assert room.copies.find("ada", None, boot_s()) is None
    async with asyncio.timeout(20):
        await room.knowledge.until_old()  # and the stream is opened anew


async def test_what_is_read_by_an_old_postgres_is_not_answered(room: Room) -> None:
    room.truth.answers = [Told("old", Stamp(EPOCH - 1, 99), is_no=False)] * 5
    with pytest.raises(PeerUnavailable):
        await room.get("ada")


async def test_a_new_epoch_drops_all_copies(room: Room) -> None:
    await room.get("ada")
    room.knowledge.started(Place(EPOCH + 1, 10, 2), resumed=False)
    room.hear()
    assert (await room.get("ada")).value == "2"


async def test_that_there_is_none_is_answered_as_of_what_was_known_and_never_kept(room: Room) -> None:
    room.truth.answers = [Unstamped("none")]
    held = await room.get("ada")
    assert (held.value, held.stamp, room.shared.kept) == ("none", Stamp(EPOCH, 10), {})
    assert room.copies.may_answer("ada", held, None, boot_s())
    room.change("ada")  # it may be there now
    assert not room.copies.may_answer("ada", held, None, boot_s())
    room.truth.answers = [Unstamped("none")]
    held = await room.get("ada", Revision(EPOCH, 15))
    assert held.stamp == Stamp(EPOCH, 15)
    assert (await room.get("ada")).value == "3"


# Bounds ----------------------------------------------------------------------------------------------------------------


async def test_more_cold_questions_than_may_be_under_way_are_refused_at_once() -> None:
    room = Room(cold_max=3)
    room.truth.gate.clear()
    asking = [asyncio.create_task(room.get(f"user-{number}")) for number in range(3)]
    await room.truth.came(3)
    with pytest.raises(Overloaded) as caught:
        await room.get("one more")
    assert caught.value.retry_after_s
    joined = asyncio.create_task(room.get("user-0"))  # who joins a reading asks nothing
    await settled()
    room.truth.gate.set()
    await asyncio.gather(*asking, joined)
    assert (await room.get("one more")).value == "4"
    room.truth.answers = [PeerUnavailable("away", retry_after_s=1.0, peer="registry")] * 3
    for number in range(3):
        with pytest.raises(PeerUnavailable):
            await room.get(f"other-{number}")
    assert len(await asyncio.gather(*(room.get(f"third-{number}") for number in range(3)))) == 3  # nothing has leaked


async def test_the_copies_that_were_used_last_are_kept() -> None:
    room = Room(copies_max=3)
    for user in ("ada", "bob", "cyd", "ada", "dan"):
        await room.get(user)
    found = [user for user in ("ada", "bob", "cyd", "dan") if room.copies.find(user, None, boot_s())]
    assert found == ["ada", "cyd", "dan"]


async def test_refusals_push_out_no_others() -> None:
    room = Room(copies_max=16)
    await room.get("ada")
    room.truth.answers = [Told("no", Stamp(EPOCH, 10), is_no=True) for _ in range(20)]
    for number in range(20):
        await room.get(f"nobody-{number}")
    found = [number for number in range(20) if room.copies.find(f"nobody-{number}", None, boot_s())]
    assert found == [18, 19]
    assert room.copies.find("ada", None, boot_s())


async def test_a_refusal_is_kept_for_half_a_minute_and_the_rest_for_ten(room: Room) -> None:
    room.truth.answers = [Told("yes", Stamp(EPOCH, 10), is_no=False), Told("no", Stamp(EPOCH, 10), is_no=True)]
    room.knowledge.lease_until = room.knowledge.registered_until = float("inf")
    for user, least_s, most_s in (("ada", 540, 660), ("bob", 27, 33)):
        held = await room.get(user)
        assert room.copies.find(user, None, held.read_at + least_s - 1)
        assert not room.copies.find(user, None, held.read_at + most_s + 1)
        assert least_s <= room.shared.ttls[-1] <= most_s


async def test_what_was_refused_and_is_allowed_now_is_one_copy(room: Room) -> None:
    room.truth.answers = [Told("no", Stamp(EPOCH, 10), is_no=True), Told("yes", Stamp(EPOCH, 11), is_no=False)]
    assert (await room.get("ada")).value == "no"
    room.change("ada")
    assert (await room.get("ada")).value == "yes"
    assert (await room.get("ada")).value == "yes"
    room.change("ada")
    room.truth.answers = [Told("no", Stamp(EPOCH, 12), is_no=True)]
    assert [(await room.get("ada")).value for _ in range(2)] == ["no", "no"]
    assert len(room.truth.asked) == 3


# Redis -----------------------------------------------------------------------------------------------------------------


async def test_a_copy_in_redis_serves_if_nothing_has_changed_since(room: Room) -> None:
    room.shared.kept[EPOCH, "ada"] = Told("theirs", Stamp(EPOCH, 12), is_no=False)
    held = await room.get("ada")
    assert (held.value, held.source, held.sent_at) == ("theirs", Source.CACHE, None)
    assert (await room.get("ada")).source is Source.PROCESS
    assert not room.truth.asked


@pytest.mark.parametrize(
    "stamp", [Stamp(EPOCH, 9), Stamp(EPOCH - 1, 99), Stamp(EPOCH + 1, 99)], ids=["old", "of before", "of a later epoch"]
)
async def test_a_copy_in_redis_that_is_old_or_of_another_epoch_is_not_used(room: Room, stamp: Stamp) -> None:
    room.shared.kept[EPOCH, "ada"] = Told("theirs", stamp, is_no=False)
    assert (await room.get("ada")).value == "1"


async def test_without_a_lease_no_copy_is_used_and_each_answer_is_read() -> None:
    room = Room()
    await room.get("ada")
    room.knowledge.lease_until = boot_s()
    for number in (2, 3):
        held = await room.get("ada")
        assert (held.value, held.source) == (str(number), Source.REGISTRY)
        assert room.copies.may_answer("ada", held, None, boot_s())


async def test_without_a_lease_redis_is_neither_asked_nor_given_anything(room: Room) -> None:
    room.knowledge.lease_until = boot_s()
    assert (await room.get("ada")).value == "1"
    await settled()
    assert (room.shared.asked, room.shared.put_for) == ([], [])
    room.hear()
    await room.get("bob")
    await settled()
    assert (room.shared.asked, room.shared.put_for) == (["bob"], ["bob"])


async def test_a_put_that_hangs_delays_no_answer_and_of_many_only_some_are_held(room: Room) -> None:
    room.shared.gate.clear()
    async with asyncio.timeout(20):
        for number in range(100):
            assert (await room.get(f"user-{number}")).source is Source.REGISTRY
    await settled()
    assert len(room.shared.put_for) == 64
    assert not room.shared.kept
    room.shared.gate.set()
    await settled()
    assert len(room.shared.kept) == 64
    await room.get("one more")
    await settled()
    assert (EPOCH, "one more") in room.shared.kept


async def test_puts_that_hang_end_with_the_router(room: Room) -> None:
    room.shared.gate.clear()
    await room.get("ada")
    await settled()
    async with asyncio.timeout(20):
        await room.copies.close()
    room.shared.gate.set()
    await settled()
    assert not room.shared.kept


async def test_what_a_copy_rests_on_is_looked_up_again_only_after_something_has_changed(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.get("ada")
    looked: list[Sequence[Thing]] = []
    is_current = room.knowledge.is_current

    def look(stamp: Stamp, things: Sequence[Thing]) -> bool:
        looked.append(things)
        return is_current(stamp, things)

    monkeypatch.setattr(room.knowledge, "is_current", look)
    for _ in range(3):
        room.hear()
        assert (await room.get("ada")).value == "1"
    assert len(looked) == 1
    room.change("bob")
    assert (await room.get("ada")).value == "1"
    assert len(looked) == 2
    room.change("ada")
    assert (await room.get("ada")).value == "2"


@pytest.fixture
async def link(redis_settings: RedisSettings) -> AsyncIterator[RedisLink]:
    opened = RedisLink(redis_settings)
    yield opened
    await opened.close()


PAIR_VALUE = Permission(Verdict.GRANT, 1000.0)


async def test_what_is_no_copy_gives_way_whatever_it_is(link: RedisLink, workspace_id: str) -> None:
    permissions, pair = redis_permissions(link), PairKey(workspace_id, "ada", "agent")
    name = keys.permission(EPOCH, *pair)
    told = Told(PAIR_VALUE, Stamp(EPOCH, 7), is_no=False)
    for spoil in (
        ("SET", name, "by hand, and longer than sixteen letters"),
        ("SET", name, "9"),
        ("LPUSH", name, "a list"),
        ("HSET", name, "a", "hash"),
    ):
        await link.call("DEL", name)
        await link.call(*spoil)
        assert await permissions.get(EPOCH, pair) is None
        await permissions.put(pair, told, 5)
        assert await permissions.get(EPOCH, pair) == told


async def test_of_many_who_put_a_copy_the_newest_stays(link: RedisLink, workspace_id: str) -> None:
    permissions, pair = redis_permissions(link), PairKey(workspace_id, "ada", "agent")
    revisions = [5, 17, 3, 999, 1000, 12, 1000, 2]
    puts: list[Awaitable[None]] = [
        permissions.put(pair, Told(PAIR_VALUE._replace(ends_s=float(index)), Stamp(EPOCH, revision), is_no=False), 5)
        for index, revision in enumerate(revisions)
    ]
    await asyncio.gather(*puts)
    assert await permissions.get(EPOCH, pair) == Told(PAIR_VALUE._replace(ends_s=4.0), Stamp(EPOCH, 1000), is_no=False)
