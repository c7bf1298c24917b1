"""One stream of events: what it owes its caller when logs do not answer, and what a caller can make it hold."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from tests.waiting import until
from twofold.router.v1 import event_pb2
from twofold_router.event_service import EventService
from twofold_router.event_streams import (
    AGENTS_MAX,
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
    Events,
    LogKey,
    LogUnavailable,
    Missed,
    NewEvent,
    Nudged,
    Place,
    Reading,
)


class World:
    """Logs of one epoch that are read at once, and nudges that never come."""

    def __init__(self) -> None:
        self.entries: dict[str, list[Entry]] = {}
        self.answers = True
        self.readings = 0

    def hold(self, agent_id: str, count: int, form: bytes = b"event") -> None:
        self.entries[agent_id] = [Entry(offset, form) for offset in range(1, count + 1)]

    async def listen(self, log: LogKey, nudged: Nudged, missed: Missed) -> None: ...

    def leave(self, log: LogKey, nudged: Nudged) -> None: ...

    async def head(self, log: LogKey, *, begin: bool) -> Reading:
        return Reading("e", 1, len(self.entries.get(log.agent_id, ())), [], True)

    async def follow(self, log: LogKey, place: Place) -> Reading:
        self.readings += 1
        if not self.answers:
            raise LogUnavailable("away", retry_after_s=1.0)
        entries = self.entries.get(log.agent_id, [])
        return Reading("e", 1, len(entries), entries[place.offset :], True)

    async def append(self, log: LogKey, events: Sequence[NewEvent], request_id: str | None) -> Appended:
        raise NotImplementedError

    async def read(self, log: LogKey, place: Place, count: int) -> Reading:
        raise NotImplementedError


class Uncounted:
    """Nobody counts."""

    def delivered(self, events: int) -> None: ...

    def gap(self) -> None: ...

    def reset(self) -> None: ...


def stream_of(tails: Tails, *wanted: Wanted, credit: int | None = None, until_caught_up: bool = False) -> EventStream:
    opening = Opening("ws", wanted, credit, until_caught_up)
    return EventStream(tails, opening, lambda: Delivery.LIVE, Uncounted(), heartbeat_s=0.2)


def kinds(told: Sequence[Of] | Delivery | None) -> list[tuple[str, type]]:
    assert isinstance(told, list)
    return [(one.agent_id, type(one.told)) for one in told]


async def test_c11_whoever_could_not_be_told_that_nothing_is_new_is_told_so_when_the_log_is_looked_at_again() -> None:
    world = World()
    tails = Tails(world, world, poll_s=600)
    first = stream_of(tails, Wanted("a", Start.NOW))
    assert kinds(await first.next()) == [("a", Subscribed), ("a", CaughtUp)]  # so the tail knows its head
    world.answers = False
    late = stream_of(tails, Wanted("a", Start.NOW), until_caught_up=True)
    assert kinds(await late.next()) == [("a", Subscribed)]
    world.answers = True
    (tail,) = tails._tails.values()
    await tail.look()
    assert kinds(await late.next()) == [("a", CaughtUp)]
    assert await late.next() is None


async def test_an_agent_is_begun_or_refused_without_a_credit_and_only_its_events_wait_for_one() -> None:
    world = World()
    for agent_id in ("a", "b"):
        world.hold(agent_id, 2)
    stream = stream_of(Tails(world, world, poll_s=600), Wanted("a", Start.OLDEST), credit=1)
    assert kinds(await stream.next()) == [("a", Subscribed), ("a", Batch)]
    stream.obey(Added([Wanted("b", Start.OLDEST), Wanted("c", Start.NOW), Wanted("d", Place("other", 1))]))
    assert {*kinds(await stream.next())} == {("b", Subscribed), ("c", Subscribed), ("c", CaughtUp), ("d", Refused)}
    assert await stream.next() is Delivery.LIVE
    stream.obey(Credit(3))
    assert kinds(await stream.next()) == [("a", Batch), ("a", CaughtUp), ("b", Batch), ("b", CaughtUp)]


async def test_c12_agents_that_are_wanted_anew_without_a_credit_are_not_piled_up() -> None:
    world = World()
    world.hold("a", 2)
    tails = Tails(world, world, poll_s=600)
    stream = stream_of(tails, Wanted("a", Start.OLDEST), credit=1)
    await stream.next()
    for _ in range(100):
        stream.obey(Added([Wanted("a", Start.OLDEST)]))
    assert len(stream._behind) == 1


async def test_c12_a_caller_that_takes_nothing_is_not_heard_for_ever() -> None:
    """It wants agents and wants them no longer, again and again: each is told as taken off."""
    world = World()
    tails = Tails(world, world, poll_s=600)
    streams = EventStreams(tails, Uncounted(), streams_max=1, heartbeat_s=600)
    said = 0

    async def wishes() -> AsyncIterator[event_pb2.SubscribeRequest]:
        nonlocal said
        yield event_pb2.SubscribeRequest(open=event_pb2.SubscribeOpen(workspace_id="ws"))
        for number in range(5 * AGENTS_MAX):
            said += 1
            agent = event_pb2.SubscribeAgent(agent_id=f"agent-{number}")
            yield event_pb2.SubscribeRequest(add=event_pb2.SubscribeAdd(agents=[agent]))
            yield event_pb2.SubscribeRequest(remove=event_pb2.SubscribeRemove(agent_ids=[agent.agent_id]))
            await asyncio.sleep(0)

    told = EventService(Events(world, published=lambda events, size: None), streams).Subscribe(wishes(), None)  # type: ignore[arg-type]
    await anext(told)
    await until(lambda: said >= AGENTS_MAX, "it is heard")
    for _ in range(100):
        await asyncio.sleep(0)
    assert said <= AGENTS_MAX + 2
    removed = 1
    while removed < 5 * AGENTS_MAX:
        await anext(told)
        removed += 1
    await told.aclose()
    assert len(streams) == len(tails) == 0


async def test_what_a_stream_has_no_room_for_is_not_read_again_and_again() -> None:
    world = World()
    agents = [f"agent-{number}" for number in range(64)]
    for agent_id in agents:
        world.hold(agent_id, 1, bytes(200 * 1024))
    tails = Tails(world, world, poll_s=600)
    stream = stream_of(tails, *(Wanted(agent_id, Start.OLDEST) for agent_id in agents), until_caught_up=True)
    told = []
    while (some := await stream.next()) is not None:
        told += [one for one in kinds(some) if one[1] is Batch]
    assert sorted(told, key=str) == sorted([(agent_id, Batch) for agent_id in agents], key=str)
    assert world.readings <= 2.5 * len(agents)
