"""One stream of events: what it owes its caller when logs do not answer, and what a caller can make it hold."""

from collections.abc import Sequence

from twofold_router.event_streams import (
    CaughtUp,
    Delivery,
    EventStream,
    Of,
    Opening,
    Start,
    Subscribed,
    Wanted,
)
from twofold_router.event_tails import Tails
from twofold_router.events import (
    Appended,
    Entry,
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

    def hold(self, agent_id: str, count: int) -> None:
        self.entries[agent_id] = [Entry(offset, b"event") for offset in range(1, count + 1)]

    async def listen(self, log: LogKey, nudged: Nudged, missed: Missed) -> None: ...

    def leave(self, log: LogKey, nudged: Nudged) -> None: ...

    async def head(self, log: LogKey, *, begin: bool) -> Reading:
        return Reading("e", 1, len(self.entries.get(log.agent_id, ())), [], True)

    async def follow(self, log: LogKey, place: Place) -> Reading:
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


def stream_of(tails: Tails, *wanted: Wanted, credits: int | None = None, until_caught_up: bool = False) -> EventStream:
    opening = Opening("ws", wanted, credits, until_caught_up)
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
