"""What was published and what each subscriber was told, and the judgement of it. Pure.

HOLE: an offset was left out without a word. ORDER: one came again, or out of order, or of another epoch than the stream's.
RESUMED: a stream that was to go on behind a place began elsewhere. FORKED: one offset of one epoch stands for two events, or
for another one than was acknowledged. DOUBLED: one event has two offsets of one epoch. DEAF: what was published when all was
well again did not come.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.chaos.control.history import Violation


class Place(NamedTuple):
    """Behind which event of which log a subscriber stands."""

    epoch: str
    offset: int


@dataclass(frozen=True, slots=True)
class Told:
    """One thing that a subscriber was told of an agent. `kind`: subscribed, event, gap, reset or refused.

    Of an event `name` is what it was published as; of a gap `first` and `offset` are the first and the last that is missing;
    with subscribed `after` is the place that was asked for.
    """

    kind: str
    agent: str
    epoch: str = ""
    offset: int = 0
    first: int = 0
    name: str = ""
    after: Place | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """A batch that was acknowledged: its events have the offsets from `first` on."""

    agent: str
    epoch: str
    first: int
    names: tuple[str, ...]


@dataclass
class Subscriber:
    """One subscriber over all its streams, in the order in which it was told. `at` is when it was told the last."""

    router: int
    told: list[Told] = field(default_factory=list)
    at: float = 0.0


@dataclass
class Eventing:
    """Everything that one schedule saw. `deaf`: who was not told of the last events, (router, what was missing)."""

    published: list[Published] = field(default_factory=list)
    subscribers: list[Subscriber] = field(default_factory=list)
    deaf: list[tuple[int, str]] = field(default_factory=list)

    def counts(self) -> Counter[str]:
        """What was seen, in numbers."""
        told = Counter(f"told: {told.kind}" for subscriber in self.subscribers for told in subscriber.told)
        told["events published"] = sum(len(published.names) for published in self.published)
        return told


def judge_events(eventing: Eventing) -> Iterator[Violation]:
    """What is wrong with it."""
    for subscriber in eventing.subscribers:
        yield from _of_stream(subscriber)
    yield from _of_content(eventing)
    for router, detail in eventing.deaf:
        yield Violation("DEAF", router, 0.0, detail)


def _of_stream(subscriber: Subscriber) -> Iterator[Violation]:
    places: dict[str, Place] = {}
    for told in subscriber.told:
        place = places.get(told.agent)
        for kind, detail in _wrong(told, place):
            yield Violation(kind, subscriber.router, subscriber.at, f"{told} behind {place}: {detail}")
        if told.kind == "reset":
            places[told.agent] = Place(told.epoch, 0)
        elif told.kind != "refused":
            places[told.agent] = Place(told.epoch, told.offset)


def _wrong(told: Told, place: Place | None) -> Iterator[tuple[str, str]]:
    if told.kind == "subscribed":
        if told.after is not None and told.after != Place(told.epoch, told.offset):
            yield "RESUMED", f"it was to go on behind {told.after}"
    elif told.kind == "refused":
        return
    elif place is None:
        yield "ORDER", "the stream has not begun"
    elif told.kind == "reset":
        if told.epoch == place.epoch:
            yield "ORDER", "the epoch is the same"
    elif told.epoch != place.epoch:
        yield "ORDER", "another epoch, without a reset"
    else:
        first = told.first if told.kind == "gap" else told.offset
        if first > place.offset + 1:
            yield "HOLE", "what is between was not announced"
        elif first <= place.offset or told.offset < first:
            yield "ORDER", "it was told before"


def _of_content(eventing: Eventing) -> Iterator[Violation]:
    names: dict[tuple[str, str, int], str] = {}
    places: defaultdict[tuple[str, str, str], set[int]] = defaultdict(set)
    for agent, epoch, offset, name in _all(eventing):
        known = names.setdefault((agent, epoch, offset), name)
        if known != name:
            yield Violation("FORKED", -1, 0.0, f"{agent} {epoch} {offset} is {known} and {name}")
        places[(agent, epoch, name)].add(offset)
    for (agent, epoch, name), offsets in places.items():
        if len(offsets) > 1:
            yield Violation("DOUBLED", -1, 0.0, f"{name} of {agent} is at {sorted(offsets)} of {epoch}")


def _all(eventing: Eventing) -> Iterator[tuple[str, str, int, str]]:
    for published in eventing.published:
        for offset, name in enumerate(published.names, start=published.first):
            yield published.agent, published.epoch, offset, name
    for told in _events(eventing.subscribers):
        yield told.agent, told.epoch, told.offset, told.name


def _events(subscribers: Sequence[Subscriber]) -> Iterator[Told]:
    for subscriber in subscribers:
        yield from (told for told in subscriber.told if told.kind == "event")
