"""C7: the counters in Redis against an exact log of random traffic, repeats, settlements, clocks that step back, losses."""

import bisect
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from twofold_chassis.redis import RedisLink
from twofold_chassis.redis_cluster import slot_of
from twofold_chassis.refusals import RequestReused
from twofold_chassis.settings import RedisSettings
from twofold_router import keys
from twofold_router.limits import METERS, Cost, CountersLost, Operation, Outcome, Subject, Tally
from twofold_router.limits_redis import RedisCounters, RedisFilling
from twofold_router.permissions import PairKey
from twofold_router.rebuilds import Begun, Rebuilds, Span, Used, Window
from twofold_router.terms import Limit, LimitKind

CELLS = 12
START_MS = 1_800_000_000_000


class Entry(NamedTuple):
    """One that was admitted, when, and in which cell of each meter."""

    operation: Operation
    at_ms: int
    cells: dict[LimitKind, int]


@dataclass
class Log:
    """Everything that was admitted, exactly."""

    entries: dict[str, Entry] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    newest: dict[tuple[LimitKind, str], int] = field(default_factory=dict)

    def of(self, kind: LimitKind, pair: PairKey) -> list[tuple[int, int, int]]:
        """Time, cell and amount of each entry that counts in this meter of this pair."""
        meter = METERS[kind]
        return [
            (entry.at_ms, entry.cells[kind], getattr(entry.operation.cost, meter.unit))
            for entry in self.entries.values()
            if who(meter.subject, entry.operation.pair) == who(meter.subject, pair)
        ]

    def cell(self, kind: LimitKind, pair: PairKey, now_ms: int) -> int:
        """The cell that counts now: never an earlier one than before."""
        number = now_ms * CELLS // (METERS[kind].span_s * 1000)
        return max([number, *(cell for _, cell, amount in self.of(kind, pair) if amount)])

    def ring(self, kind: LimitKind, pair: PairKey, now_ms: int) -> int:
        """What the ring shows: all cells that reach into the span, in full."""
        newest = self.cell(kind, pair, now_ms)
        return sum(amount for _, cell, amount in self.of(kind, pair) if cell >= newest - CELLS)

    def used(self, kind: LimitKind, pair: PairKey, after_ms: float, until_ms: int) -> int:
        """What was really admitted in a span of time."""
        return sum(amount for at_ms, _, amount in self.of(kind, pair) if after_ms < at_ms <= until_ms)


def who(subject: Subject, pair: PairKey) -> str:
    return {Subject.USER: pair.user_id, Subject.AGENT: pair.agent_id, Subject.WORKSPACE: ""}[subject]


class Known:
    """A registry that knows these operations."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.known: set[str] = set()
        self.during: Callable[[], Any] | None = None

    async def read(self, workspace_id: str, span: Span) -> Window:
        used = [
            Used(
                who(span.subject, entry.operation.pair),
                entry.at_ms // 1000 // span.cell_s * span.cell_s,
                entry.operation.cost,
            )
            for operation_id, entry in self._log.entries.items()
            if operation_id in self.known and entry.at_ms / 1000 >= span.since_s // span.cell_s * span.cell_s
        ]
        operations = {each: self._log.entries[each].at_ms / 1000 for each in self.known} if span.operations_s else {}
        if self.during is not None:
            await self.during()
        return Window(used, operations)


class Room:
    """Counters of a workspace of their own, with a clock that a test moves."""

    def __init__(self, link: RedisLink) -> None:
        self.ws = f"ws-{uuid.uuid4().hex[:12]}"
        self.now_ms = START_MS
        self.log = Log()
        self.reads = 0
        self.counters = RedisCounters(link, cells=CELLS, now_ms=lambda: self.now_ms)
        self.known = Known(self.log)
        self.rebuilds = Rebuilds(
            RedisFilling(link, self.counters, cells=CELLS),
            self.known,
            cells=CELLS,
            wait_s=30.0,
            database_s=lambda: self.now_ms / 1000,
            count=lambda outcome: None,
        )

    async def lose(self) -> None:
        """Redis loses all that is counted, and how far a rebuild has come."""
        for name in await self.counters._link.call("KEYS", f"*{{{self.ws}}}*"):
            await self.counters._link.call("DEL", name)

    def operation(self, name: str, user_id: str = "ada", agent_id: str = "agent", cost: Cost = Cost()) -> Operation:  # noqa: B008
        return Operation(PairKey(self.ws, user_id, agent_id), name, cost)

    async def count(self, operation: Operation, *limits: Limit, peeks: bool = False) -> Tally:
        return await self.counters.count(operation, limits, peeks=peeks)

    async def shown(self, operation: Operation) -> list[int]:
        return [mark.used for mark in (await self.count(operation, peeks=True)).marks]

    def exact(self, pair: PairKey) -> list[int]:
        return [self.log.ring(kind, pair, self.now_ms) for kind in METERS]

    def admitted(self, operation: Operation) -> None:
        cells = {kind: self.log.cell(kind, operation.pair, self.now_ms) for kind in METERS}
        self.log.entries[operation.operation_id] = Entry(operation, self.now_ms, cells)


@asynccontextmanager
async def opened(redis: RedisSettings) -> AsyncIterator[Room]:
    link = RedisLink(redis)
    try:
        room = Room(link)
        assert await room.rebuilds.rebuilt(room.ws)
        yield room
    finally:
        await link.close()


@pytest.fixture
async def room(redis_settings: RedisSettings) -> AsyncIterator[Room]:
    async with opened(redis_settings) as room:
        yield room


HOUR = Limit(LimitKind.USER_HOUR_MESSAGES, 5)
MINUTE = Limit(LimitKind.USER_MINUTE_MESSAGES, 3)
LIMITS = (
    HOUR,
    MINUTE,
    Limit(LimitKind.AGENT_HOUR_MESSAGES, 7),
    Limit(LimitKind.WORKSPACE_DAY_TOKENS, 40),
    Limit(LimitKind.WORKSPACE_DAY_MICROS, 30, is_shadow=True),
)
COSTS = st.builds(Cost, st.sampled_from([1, 1, 1, 2, 0]), st.integers(0, 9), st.integers(0, 9))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([1, 900, 5_000, 17_000, 61_000, 301_000, 1_900_000, 3_700_000])),
        st.tuples(st.just("back"), st.sampled_from([1, 6_000, 400_000])),
        st.tuples(st.just("count"), st.sampled_from(["ada", "bob"]), st.sampled_from(["one", "two"]), COSTS),
        st.tuples(st.just("count"), st.sampled_from(["ada", "bob"]), st.just("one"), st.just(Cost())),
        st.tuples(st.just("again"), st.integers(0, 99)),
        st.tuples(st.just("settle"), st.integers(0, 99), COSTS),
        st.tuples(st.just("release"), st.integers(0, 99)),
        st.tuples(st.just("record"), st.integers(0, 99)),
        st.tuples(st.just("lose")),
    ),
    max_size=50,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
async def test_c7_counters_agree_with_an_exact_log(redis_settings: RedisSettings, steps: list[tuple[Any, ...]]) -> None:
    async with opened(redis_settings) as room:
        first: dict[str, Tally] = {}
        for number, (step, *values) in enumerate(steps):
            if step == "wait":
                room.now_ms += values[0]
            elif step == "back":
                room.now_ms -= values[0]
            elif step == "count":
                await _count(room, first, room.operation(f"op-{number}", values[0], values[1], values[2]))
            elif step == "lose":
                await _lose(room, first)
            elif room.log.entries:
                names = list(room.log.entries)
                await _end(room, first, step, room.log.entries[names[values[0] % len(names)]], values[1:])
            for user_id, agent_id in (("ada", "one"), ("bob", "two")):
                asked = room.operation("", user_id, agent_id)
                assert await room.shown(asked) == room.exact(asked.pair)


async def _count(room: Room, first: dict[str, Tally], operation: Operation) -> None:
    before = room.exact(operation.pair)
    tally = await room.count(operation, *LIMITS)
    assert tally.at_ms == room.now_ms
    over = {
        limit.kind: limit
        for limit, place in ((limit, list(METERS).index(limit.kind)) for limit in LIMITS)
        if before[place] + getattr(operation.cost, METERS[limit.kind].unit) > limit.amount
    }
    assert {kind for kind, mark in zip(METERS, tally.marks, strict=True) if mark.retry_ms} == set(over)
    if any(not limit.is_shadow for limit in over.values()):
        assert tally.outcome is Outcome.REFUSED
        assert [mark.used for mark in tally.marks] == before
        await _retry_is_honest(room, operation, tally)
        return
    assert tally.outcome is Outcome.COUNTED
    room.admitted(operation)
    first[operation.operation_id] = tally
    assert [mark.used for mark in tally.marks] == room.exact(operation.pair)


async def _retry_is_honest(room: Room, operation: Operation, tally: Tally) -> None:
    """At that time it passes, if nothing else comes; 10 ms earlier it does not."""
    kinds = [(limit, tally.marks[list(METERS).index(limit.kind)]) for limit in LIMITS if not limit.is_shadow]
    retries = [mark.retry_ms for _, mark in kinds if mark.retry_ms]
    now_ms = room.now_ms
    if -1 in retries:
        never = [limit for limit, mark in kinds if mark.retry_ms == -1]
        assert all(getattr(operation.cost, METERS[limit.kind].unit) > limit.amount for limit in never)
        return
    refuses = []
    for room.now_ms in (max(retries) - 10, max(retries)):
        peeked = await room.count(operation, *(limit for limit in LIMITS if not limit.is_shadow), peeks=True)
        refuses.append(any(mark.retry_ms for mark in peeked.marks))
    room.now_ms = now_ms
    assert refuses == [True, False]


async def _end(room: Room, first: dict[str, Tally], step: str, entry: Entry, values: list[Any]) -> None:
    operation, name = entry.operation, entry.operation.operation_id
    is_remembered = name in first
    if step == "record":
        room.known.known.add(name)
    elif step == "again" and is_remembered and name not in room.log.settled:
        assert await room.count(operation, *LIMITS) == first[name]._replace(outcome=Outcome.DUPLICATE)
        with pytest.raises(RequestReused):
            await room.count(operation._replace(cost=Cost(9, 9, 9)), *LIMITS)
    elif step == "settle":
        settled = await room.counters.settle(operation._replace(cost=values[0]), entry.at_ms / 1000)
        assert settled.is_duplicate == (name in room.log.settled)
        if not settled.is_duplicate:
            assert round(settled.at_s * 1000) == entry.at_ms
            room.log.entries[name] = entry._replace(operation=operation._replace(cost=values[0]))
            room.log.settled.add(name)
    elif step == "release" and name not in room.log.settled:
        await room.counters.release(operation)
        del room.log.entries[name]
        room.known.known.discard(name)
        first.pop(name, None)


async def _lose(room: Room, first: dict[str, Tally]) -> None:
    """All that is known comes back, and nothing else."""
    await room.counters._link.call("DEL", f"g:{{{room.ws}}}")
    with pytest.raises(CountersLost):
        await room.shown(room.operation(""))
    assert await room.rebuilds.rebuilt(room.ws)
    kept = {}
    for name, entry in room.log.entries.items():
        if name in room.known.known:
            cells = {
                kind: min(entry.at_ms * CELLS, room.now_ms * CELLS) // (meter.span_s * 1000)
                for kind, meter in METERS.items()
            }
            kept[name] = entry._replace(cells=cells)
    room.log.entries = kept
    room.log.settled = set(kept)
    first.clear()


@settings(max_examples=80, deadline=None)
@given(
    amount=st.integers(1, 6),
    waits=st.lists(st.sampled_from([0, 0, 0, 1, 2_000, 4_999, 5_001, 31_000, 59_999, 65_000]), min_size=5, max_size=60),
)
async def test_c7_no_span_holds_more_than_the_limit_and_no_refusal_comes_without_it(
    redis_settings: RedisSettings, amount: int, waits: list[int]
) -> None:
    span_ms, limit = 60_000, Limit(LimitKind.USER_MINUTE_MESSAGES, amount)
    async with opened(redis_settings) as room:
        admitted: list[int] = []
        for number, wait_ms in enumerate(waits):
            room.now_ms += wait_ms
            tally = await room.count(room.operation(f"op-{number}"), limit)
            if tally.outcome is Outcome.COUNTED:
                admitted.append(room.now_ms)
                assert len(admitted) - bisect.bisect_right(admitted, room.now_ms - span_ms) <= amount
            else:
                longer_ms = span_ms + span_ms // CELLS
                assert len(admitted) - bisect.bisect_right(admitted, room.now_ms - longer_ms) >= amount


async def test_c8_what_is_recorded_between_two_readings_counts_too_much_rather_than_too_little(room: Room) -> None:
    operation = room.operation("one")
    await room.count(operation)
    room.admitted(operation)

    async def recorded() -> None:
        room.known.known.add("one")

    room.known.during = recorded  # behind the first reading, which tells the operations
    await room.counters._link.call("DEL", f"g:{{{room.ws}}}")
    assert await room.rebuilds.rebuilt(room.ws)
    await room.counters.settle(operation, room.now_ms / 1000)
    assert all(shown >= exact for shown, exact in zip(await room.shown(operation), room.exact(operation.pair), strict=True))


async def test_c8_who_slept_through_a_second_loss_does_not_complete_the_first(room: Room) -> None:
    """Redis loses everything once more while counters are set up anew: another router begins, and only that one may end."""
    other = RedisFilling(room.counters._link, room.counters, cells=CELLS)
    operation = room.operation("one")
    await room.count(operation)
    key = f"g:{{{room.ws}}}"
    await room.counters._link.call("DEL", key)
    assert not isinstance(await other.begin(room.ws, "slept"), Begun)
    await room.counters._link.call("DEL", key)
    assert not isinstance(await other.begin(room.ws, "awake"), Begun)
    for keeps in (False, True):
        assert await other.begin(room.ws, "slept", keeps=keeps) is Begun.CLAIMED
    assert not await other.commit(room.ws, "slept")
    with pytest.raises(CountersLost):
        await room.shown(operation)
    assert await other.commit(room.ws, "awake")
    assert await room.shown(operation) == [0] * 6
    assert await other.begin(room.ws, "late") is Begun.COMPLETE


async def test_c8_what_was_written_before_a_second_loss_is_not_taken_for_complete(room: Room) -> None:
    """Redis loses everything behind the first part that was written: it is begun anew, and all of it is there at the end."""
    operation = room.operation("one", cost=Cost(1, 5, 0))
    await room.count(operation)
    room.admitted(operation)
    room.known.known.add("one")
    losses = 3

    async def lose() -> None:
        nonlocal losses
        room.reads += 1
        if losses and room.reads % 3 == 0:
            losses -= 1
            await room.lose()

    room.known.during = lose
    await room.lose()
    assert await room.rebuilds.rebuilt(room.ws)
    assert losses == 0
    assert await room.shown(operation) == room.exact(operation.pair)


async def test_c8_a_marker_of_another_process_counts_nothing(room: Room, redis_settings: RedisSettings) -> None:
    """A snapshot that is restored, or a replica that is promoted: what is there may be older than what was counted."""
    operation = room.operation("one")
    await room.count(operation)
    async with _bare(redis_settings) as bare:
        marker = await bare.get(f"g:{{{room.ws}}}")
        assert isinstance(marker, bytes)
        await bare.set(f"g:{{{room.ws}}}", b"another:" + marker.split(b":", 1)[1])
    with pytest.raises(CountersLost):
        await room.count(operation)
    assert await room.rebuilds.rebuilt(room.ws)
    assert (await room.count(operation)).outcome is Outcome.COUNTED


async def test_an_operation_that_was_counted_elsewhere_is_added_once_at_its_time(room: Room) -> None:
    operation = room.operation("one", cost=Cost(1, 10, 0))
    for _ in range(2):
        await room.counters.add(operation, (room.now_ms - 400_000) / 1000)
    assert await room.shown(operation) == [1, 0, 1, 1, 10, 0]
    settled = await room.counters.settle(operation._replace(cost=Cost(1, 25, 7)), None)
    assert (settled.is_duplicate, settled.at_s) == (False, (room.now_ms - 400_000) / 1000)
    assert await room.shown(operation) == [1, 0, 1, 1, 25, 7]
    room.now_ms += 3_600_000 - 400_000 + 300_000
    assert (await room.shown(operation))[0] == 0


async def test_amounts_near_the_largest_are_exact_and_no_sum_is_too_large(room: Room) -> None:
    most = 10**15
    limit = Limit(LimitKind.WORKSPACE_DAY_TOKENS, most)
    almost = room.operation("almost", cost=Cost(1, most - 1, 0))
    assert (await room.count(almost, limit)).outcome is Outcome.COUNTED
    assert (await room.count(room.operation("two more", cost=Cost(1, 2, 0)), limit)).outcome is Outcome.REFUSED
    assert (await room.count(room.operation("last", cost=Cost(1, 1, 0)), limit)).marks[4].used == most
    for number in range(20):  # without a limit
        tally = await room.count(room.operation(f"huge-{number}", cost=Cost(most, most, most)))
        assert tally.outcome is Outcome.COUNTED
    assert all(mark.used <= 9 * 10**15 for mark in tally.marks)


def test_the_keys_of_a_script_are_those_that_stand_with_their_price() -> None:
    workspace_id, user_id, agent_id, operation_id = "w/s", "ada {1}", "x" * 255, "op:1"
    assert keys.counting(workspace_id, "g1", user_id, agent_id, operation_id) == (
        keys.marker(workspace_id),
        keys.operation(workspace_id, "g1", operation_id),
        keys.user_counters(workspace_id, "g1", user_id),
        keys.agent_counters(workspace_id, "g1", agent_id),
        keys.workspace_counters(workspace_id, "g1"),
    )


def test_all_that_an_operation_counts_in_lies_in_one_slot_of_a_cluster() -> None:
    names = keys.counting("w{s}", "g1", "ada", "agent", "op")
    assert slot_of(("EVALSHA", "sha", len(names), *names)) is not None


async def test_everything_that_is_counted_goes_by_itself(room: Room, redis_settings: RedisSettings) -> None:
    await room.count(room.operation("one", cost=Cost(1, 1, 1)))
    await room.counters.settle(room.operation("two", cost=Cost(1, 1, 1)), None)
    async with _bare(redis_settings) as bare:
        names = [name async for name in bare.scan_iter(match=f"*{{{room.ws}}}*")]
        left = {name.decode().split(":")[0]: await bare.ttl(name) for name in names}
    assert set(left) == {"g", "o", "n"}
    assert all(0 < seconds <= 48 * 3600 for seconds in left.values())


@asynccontextmanager
async def _bare(redis: RedisSettings) -> AsyncIterator["Redis"]:
    password = redis.password.get_secret_value() if redis.password else None
    client = Redis(host=redis.host, port=redis.port, password=password)
    try:
        yield client
    finally:
        await client.aclose()
