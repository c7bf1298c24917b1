"""Everything that may happen to a log and to those who follow it, in any order: what they are told follows from the truth.

The scripts run on a real Redis. Nudges are the test's: late, twice, in any order or not at all.
"""

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.waiting import until
from twofold.router.v1 import event_pb2
from twofold_chassis.redis import RedisLink
from twofold_chassis.refusals import Overloaded
from twofold_chassis.settings import RedisSettings
from twofold_router import event_tails, keys
from twofold_router.event_streams import (
    Added,
    CaughtUp,
    Credit,
    Delivery,
    EventStream,
    EventStreams,
    Of,
    Opening,
    Refused,
    Start,
    Subscribed,
    Wanted,
)
from twofold_router.event_tails import Tails
from twofold_router.events import (
    Appended,
    Batch,
    Entry,
    Gap,
    LogKey,
    LogUnavailable,
    Missed,
    NewEvent,
    Nudged,
    Place,
    Reading,
    Reset,
    told_of,
)
from twofold_router.events_redis import RedisLogs

AGENTS = ("a", "b")
ENTRIES_MAX = 6
STEPS = {
    "publish": 8,
    "again": 2,
    "nudge": 5,
    "drop": 1,
    "look": 2,
    "read": 6,
    "credit": 3,
    "resume": 2,
    "save": 1,
    "restore": 2,
    "restart": 1,
    "flush": 1,
    "evict": 2,
    "away": 1,
    "back": 2,
}
Step = tuple[str, int]


class Uncounted:
    def delivered(self, events: int) -> None: ...

    def gap(self) -> None: ...

    def reset(self) -> None: ...


class Bus:
    """Nudges as they come in life: in the worst way."""

    def __init__(self) -> None:
        self.listeners: dict[LogKey, list[Nudged]] = {}
        self.waiting: list[tuple[LogKey, Place]] = []

    async def listen(self, log: LogKey, nudged: Nudged, missed: Missed) -> None:
        self.listeners.setdefault(log, []).append(nudged)

    def leave(self, log: LogKey, nudged: Nudged) -> None:
        if nudged in self.listeners.get(log, []):
            self.listeners[log].remove(nudged)

    def deliver(self, number: int, *, again: bool) -> None:
        if self.waiting:
            at = number % len(self.waiting)
            log, place = self.waiting[at] if again else self.waiting.pop(at)
            for nudged in tuple(self.listeners.get(log, ())):
                nudged(place)


class Sometimes:
    """Logs that do not answer while Redis is away."""

    def __init__(self, logs: RedisLogs) -> None:
        self._logs = logs
        self.away = False

    def __getattr__(self, name: str) -> Any:
        async def asked(*arguments: Any, **named: Any) -> Any:
            if self.away:
                raise LogUnavailable("away", outcome="NOT_STORED")
            return await getattr(self._logs, name)(*arguments, **named)

        return asked


class Ear:
    """A subscriber: what it is told must follow from what it was told before, and must have been published."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.places: dict[str, Place] = {}
        # Those that were wanted again from where they stood, and of which nothing was told yet.
        self._resumed: set[str] = set()
        self.credit = 1
        self.stream = world.opened([Wanted(agent, Start.OLDEST) for agent in AGENTS])

    def resume(self) -> None:
        """Another stream, from where this one was; an agent of which nothing was told yet begins anew."""
        self.stream.close()
        wanted = [Wanted(agent, self.places.get(agent, Start.OLDEST)) for agent in AGENTS]
        self._resumed = {*self.places}
        self.credit = 1
        self.stream = self._world.opened(wanted)

    def more(self, events: int) -> None:
        self.credit += events
        self.stream.obey(Credit(events))

    async def read(self) -> None:
        idle = 0
        while idle < 2:
            told = await self.stream.next()
            assert told is not None
            if isinstance(told, Delivery):
                idle += 1
                continue
            idle = 0
            for one in told:
                self._judge(one)

    def _judge(self, one: Of) -> None:
        agent, told = one
        place = self.places.get(agent)
        if isinstance(told, Subscribed):
            if agent in self._resumed:
                assert told.place == place
                self._resumed.remove(agent)
            self.places[agent] = told.place
        elif isinstance(told, Refused):
            self._resumed.remove(agent)
            there = told.refusal.there
            assert place is not None
            assert place.epoch != there.epoch or not there.first - 1 <= place.offset <= there.last
            del self.places[agent]
            self.stream.obey(Added([Wanted(agent, Start.OLDEST)]))
        elif isinstance(told, Batch):
            assert place is not None
            assert place.epoch == told.epoch
            for entry in told.entries:
                assert entry.offset == self.places[agent].offset + 1
                self.places[agent] = Place(told.epoch, entry.offset)
                published = self._world.truth[LogKey(self._world.workspace_id, agent), told.epoch, entry.offset]
                assert event_pb2.AgentEvent.FromString(entry.form).type == published
                self.credit -= 1
            assert self.credit >= 0
        elif isinstance(told, Gap):
            assert place == (told.epoch, told.first - 1)
            assert told.last >= told.first
            self.places[agent] = Place(told.epoch, told.last)
        elif isinstance(told, Reset):
            assert place is not None
            assert place.epoch != told.epoch
            self.places[agent] = Place(told.epoch, 0)
        else:
            assert isinstance(told, CaughtUp)
            assert place == told.place


class Copy(NamedTuple):
    """What a log was like."""

    log: LogKey
    values: list[bytes | None]


class World:
    """Two logs in a Redis, one subscriber of both, and what was published."""

    def __init__(self, link: RedisLink) -> None:
        self.workspace_id = f"ws-{uuid.uuid4().hex[:12]}"
        self._link = link
        logs = RedisLogs(link, ttl_s=600, entries_max=ENTRIES_MAX, bytes_max=100_000)
        self.logs = Sometimes(logs)
        self.bus = Bus()
        self.tails = Tails(self.logs, self.bus, poll_s=600)
        self._streams = EventStreams(self.tails, Uncounted(), streams_max=10, heartbeat_s=0.001)
        self.truth: dict[tuple[LogKey, str, int], str] = {}
        self.requests: list[tuple[LogKey, list[NewEvent], str]] = []
        self.published: dict[tuple[str, str], Appended] = {}
        self.copies: list[Copy] = []
        self.processes = 0
        self.ear = Ear(self)

    def opened(self, wanted: list[Wanted]) -> EventStream:
        """With one credit."""
        opening = Opening(self.workspace_id, wanted, 1, until_caught_up=False)
        return EventStream(self.tails, opening, self._streams.delivery, Uncounted(), heartbeat_s=0.001)

    def log(self, number: int) -> LogKey:
        return LogKey(self.workspace_id, AGENTS[number % len(AGENTS)])

    async def publish(self, number: int) -> None:
        log = self.log(number)
        events = [NewEvent(f"{uuid.uuid4().hex[:8]}") for _ in range(1 + number % 3)]
        request_id = uuid.uuid4().hex
        with contextlib.suppress(LogUnavailable):
            appended = await self.logs.append(log, events, request_id)
            assert appended.last == appended.first + len(events) - 1
            assert not appended.duplicate
            for offset, event in enumerate(events, appended.first):
                assert (log, appended.epoch, offset) not in self.truth, "an offset of an epoch was given twice"
                self.truth[log, appended.epoch, offset] = event.type
            self.requests.append((log, events, request_id))
            self.published[request_id, appended.epoch] = appended
            self.bus.waiting.append((log, Place(appended.epoch, appended.last)))

    async def again(self, number: int) -> None:
        """The same request. Within an epoch it publishes once, and behind a loss once more."""
        if not self.requests:
            return
        log, events, request_id = self.requests[number % len(self.requests)]
        with contextlib.suppress(LogUnavailable):
            appended = await self.logs.append(log, events, request_id)
            before = self.published.get((request_id, appended.epoch))
            if before is not None:
                assert appended == before._replace(duplicate=True)
                return
            assert not appended.duplicate
            self.published[request_id, appended.epoch] = appended
            for offset, event in enumerate(events, appended.first):
                assert (log, appended.epoch, offset) not in self.truth
                self.truth[log, appended.epoch, offset] = event.type
            self.bus.waiting.append((log, Place(appended.epoch, appended.last)))

    async def nudge(self, number: int) -> None:
        self.bus.deliver(number, again=number % 5 == 0)

    async def drop(self, number: int) -> None:
        self.bus.waiting.clear()

    async def look(self, number: int) -> None:
        for tail in tuple(self.tails._tails.values()):
            await tail.look()

    async def read(self, number: int) -> None:
        await self.ear.read()

    async def credit(self, number: int) -> None:
        self.ear.more(1 + number % 7)

    async def resume(self, number: int) -> None:
        self.ear.resume()

    async def save(self, number: int) -> None:
        log = self.log(number)
        self.copies.append(Copy(log, [await self._link.call("DUMP", key) for key in keys.event_log(*log)]))

    async def restore(self, number: int) -> None:
        """Another process of Redis, with older data."""
        if not self.copies:
            return
        log, values = self.copies[number % len(self.copies)]
        for key, value in zip(keys.event_log(*log), values, strict=True):
            await self._link.call("DEL", key)
            if value is not None:
                await self._link.call("RESTORE", key, 600_000, value)
        await self._exchange(log)

    async def restart(self, number: int) -> None:
        """Another process of Redis, with the same data."""
        await self._exchange(self.log(number))

    async def _exchange(self, log: LogKey) -> None:
        head, *_ = keys.event_log(*log)
        if await self._link.call("EXISTS", head):
            self.processes += 1
            await self._link.call("HSET", head, "run_id", f"process-{self.processes}")

    async def flush(self, number: int) -> None:
        await self._link.call("DEL", *keys.event_log(*self.log(number)))

    async def evict(self, number: int) -> None:
        head, entries, _ = keys.event_log(*self.log(number))
        if number % 4 == 0:
            await self._link.call("DEL", head if number % 8 else entries)
            return
        found = await self._link.call("XRANGE", entries, "-", "+")
        if found:
            await self._link.call("XDEL", entries, found[number % len(found)][0])

    async def away(self, number: int) -> None:
        self.logs.away = True

    async def back(self, number: int) -> None:
        self.logs.away = False

    async def heal(self) -> None:
        """All is well again, and no nudge comes any more: the look at the logs must be enough for everything."""
        self.logs.away = False
        self.bus.waiting.clear()
        self.ear.more(1_000_000)
        for _ in range(3):
            await self.look(0)
            await self.ear.read()
        for agent in AGENTS:
            there = await self.logs.head(LogKey(self.workspace_id, agent), begin=False)
            assert self.ear.places[agent] == there.head, "something was never told, and never announced"

    async def close(self) -> None:
        self.ear.stream.close()
        for agent in AGENTS:
            await self._link.call("DEL", *keys.event_log(self.workspace_id, agent))


async def played(link: RedisLink, steps: list[Step]) -> None:
    world = World(link)
    try:
        for name, number in steps:
            await getattr(world, name)(number)
        await world.heal()
    finally:
        await world.close()


Play = Callable[[list[Step]], None]


@pytest.fixture
def play(redis_settings: RedisSettings) -> Play:
    """Plays steps in a loop of its own: those of Hypothesis are not coroutines."""

    def run(steps: list[Step]) -> None:
        async def all_of_it() -> None:
            link = RedisLink(redis_settings)
            try:
                await played(link, steps)
            finally:
                await link.close()

        asyncio.run(all_of_it())

    return run


STEP = st.tuples(
    st.sampled_from([name for name, often in STEPS.items() for _ in range(often)]), st.integers(min_value=0, max_value=40)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=60))
def test_c11_whatever_happens_each_offset_is_told_once_in_order_or_announced(play: Play, steps: list[Step]) -> None:
    play(steps)


def test_c11_long_lives_of_logs(redis_settings: RedisSettings) -> None:
    drawn = random.Random(7)
    names = [name for name, often in STEPS.items() for _ in range(often)]

    async def all_of_them() -> None:
        link = RedisLink(redis_settings)
        for _ in range(25):
            await played(link, [(drawn.choice(names), drawn.randrange(40)) for _ in range(150)])
        await link.close()

    asyncio.run(all_of_them())


@given(
    epochs=st.sampled_from([("x", "x"), ("x", "y"), ("", "y")]),
    offset=st.integers(0, 12),
    held=st.sets(st.integers(1, 12)),
    last=st.integers(0, 12),
    count=st.integers(1, 12),
)
def test_c11_every_offset_between_two_places_is_told_or_announced(
    epochs: tuple[str, str], offset: int, held: set[int], last: int, count: int
) -> None:
    epoch, there = epochs
    begin = offset if epoch == there else 0
    found = [Entry(number, b"") for number in sorted(held) if begin < number <= last]
    reading = Reading(there, 1, last, found[:count], len(found) <= count)
    told, place = told_of(Place(epoch, offset), reading)
    accounted = []
    for one in told:
        if isinstance(one, Batch):
            accounted += [entry.offset for entry in one.entries]
        elif isinstance(one, Gap):
            accounted += range(one.first, one.last + 1)
    assert [isinstance(one, Reset) for one in told] == ([True] * (epoch != there) + [False] * len(told))[: len(told)]
    assert accounted == [*range(begin + 1, place.offset + 1)]
    assert place.epoch == there
    if reading.is_all:
        assert place.offset == max(begin, last)


class Gated:
    """Logs and nudges of one agent, with a word for everything that is asked of them, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.confirmed = asyncio.Event()
        self.nudged: Nudged | None = None
        self.entries: list[Entry] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def listen(self, log: LogKey, nudged: Nudged, missed: Missed) -> None:
        self.asked.append("listen")
        await self.confirmed.wait()
        self.nudged = nudged
        self.asked.append("confirmed")

    def leave(self, log: LogKey, nudged: Nudged) -> None:
        self.asked.append("leave")

    async def head(self, log: LogKey, *, begin: bool) -> Reading:
        self.asked.append("head")
        return Reading("e", 1, 0, [], True)

    async def follow(self, log: LogKey, place: Place) -> Reading:
        """What there is when it is asked, and not when it answers."""
        self.asked.append("follow")
        there = self.entries[place.offset :]
        last = len(self.entries)
        await self.answers.wait()
        return Reading("e", 1, last, there, True)

    async def append(self, log: LogKey, events: Any, request_id: str | None) -> Appended:
        raise NotImplementedError

    async def read(self, log: LogKey, place: Place, count: int) -> Reading:
        raise NotImplementedError


@contextlib.asynccontextmanager
async def following(world: Gated, count: int) -> AsyncIterator[list[EventStream]]:
    tails = Tails(world, world, poll_s=600)
    opening = Opening("ws", [Wanted("a", Start.NOW)], None, until_caught_up=False)
    streams = [EventStream(tails, opening, lambda: Delivery.LIVE, Uncounted(), heartbeat_s=600) for _ in range(count)]
    yield streams
    for stream in streams:
        stream.close()


async def _next_of(streams: list[EventStream]) -> list[Any]:
    return await asyncio.gather(*(stream.next() for stream in streams))


async def test_c11_a_log_is_read_only_after_its_channel_is_confirmed_and_once_for_all_who_stand_there() -> None:
    world = Gated()
    async with following(world, 10) as streams:
        begins = asyncio.create_task(_next_of(streams))
        for _ in range(5):
            await asyncio.sleep(0)
        assert world.asked == ["listen"]
        world.confirmed.set()
        told = await begins
        assert [type(one.told).__name__ for one in told[0]] == ["Subscribed", "CaughtUp"]
    assert world.asked == ["listen", "confirmed", *["head"] * 10, "follow", "leave"]


def offsets_of(told: Any) -> list[int]:
    return [entry.offset for one in told for entry in one.told.entries]


async def test_c11_a_reading_that_was_under_way_when_a_nudge_came_is_not_the_answer_to_it() -> None:
    world = Gated()
    world.confirmed.set()
    async with following(world, 2) as streams:
        assert [type(one.told).__name__ for one in (await _next_of(streams))[0]] == ["Subscribed", "CaughtUp"]
        assert world.nudged is not None
        world.answers.clear()
        world.entries.append(Entry(1, b"first"))
        world.nudged(Place("e", 1))
        one, other = streams
        first = asyncio.create_task(one.next())
        await until(lambda: world.asked.count("follow") == 2, "it is read")
        world.entries.append(Entry(2, b"second"))
        world.nudged(Place("e", 2))
        late = asyncio.create_task(other.next())  # it stands where the other one stood, and comes behind the nudge
        await until(lambda: world.asked.count("follow") == 3, "it is read again")
        world.answers.set()
        assert offsets_of(await first) == [1]
        assert offsets_of(await late) == [1, 2]
        assert offsets_of(await one.next()) == [2]
        assert [cursor.place for stream in streams for cursor in stream._cursors.values()] == [Place("e", 2)] * 2
        # What is long known is no news.
        asked = len(world.asked)
        for old in (Place("e", 1), Place("e", 2)):
            world.nudged(old)
        await asyncio.sleep(0)
        assert len(world.asked) == asked


async def test_a_stream_that_cannot_be_opened_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_tails, "TAILS_MAX", 2)
    world = Gated()
    tails = Tails(world, world, poll_s=600)
    wanted = [Wanted(agent, Start.NOW) for agent in ("a", "b", "c")]
    with pytest.raises(Overloaded):
        EventStream(
            tails, Opening("ws", wanted, None, until_caught_up=False), lambda: Delivery.LIVE, Uncounted(), heartbeat_s=1
        )
    assert len(tails) == 0
