"""Rebuilds: what is asked of the registry, what is made of it, and who is at it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.waiting import until
from twofold_chassis.refusals import Overloaded, PeerUnavailable, Refusal
from twofold_router.limits import METERS, Cost, CountersAway, Subject
from twofold_router.rebuilds import Begun, Counter, Rebuilds, Span, Used, Window, WindowTooLarge
from twofold_router.terms import LimitKind

NOW_S = 1_800_000_000.0 + 1234
CELLS = 12
USER_HOUR = METERS[LimitKind.USER_HOUR_MESSAGES]


class FakeFilling:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.begun: list[float | Begun] = []
        self.is_away = False
        self.counters: list[Counter] = []
        self.operations: dict[str, float] = {}
        self.committed: list[str] = []

    async def begin(self, workspace_id: str, generation: str, *, keeps: bool = False) -> float | Begun:
        if self.is_away:
            raise CountersAway(asked=True)
        return self.begun.pop(0) if self.begun else NOW_S

    async def fill(
        self, workspace_id: str, generation: str, counters: Sequence[Counter], operations: Mapping[str, float]
    ) -> None:
        self.counters += counters
        self.operations |= operations

    async def commit(self, workspace_id: str, generation: str) -> bool:
        self.committed.append(workspace_id)
        return True


class FakeWindows:
    """Tells the same of everybody, unless something else is to happen."""

    def __init__(self) -> None:
        self.asked: list[Span] = []
        self.refusals: list[Refusal | None] = []
        self.gate: asyncio.Event | None = None
        self.used: Sequence[Used] = ()

    async def read(self, workspace_id: str, span: Span) -> Window:
        self.asked.append(span)
        if self.gate is not None:
            await self.gate.wait()
        refusal = self.refusals.pop(0) if self.refusals else None
        if refusal is not None:
            raise refusal
        return Window(self.used if span.subject is Subject.USER else (), {"op": NOW_S} if span.operations_s else {})


class Room:
    """Rebuilds with their surroundings."""

    def __init__(self, *, database_s: float = NOW_S) -> None:
        self.filling, self.windows = FakeFilling(), FakeWindows()
        self.outcomes: list[str] = []
        self.rebuilds = Rebuilds(
            self.filling,
            self.windows,
            cells=CELLS,
            wait_s=20.0,
            database_s=lambda: database_s,
            count=self.outcomes.append,
        )


@pytest.fixture
def room() -> Room:
    return Room()


async def test_each_span_is_asked_for_once_in_its_own_cells_and_the_operations_first(room: Room) -> None:
    assert await room.rebuilds.rebuilt("ws")
    assert [(span.subject, span.cell_s, span.operations_s > 0) for span in room.windows.asked] == [
        (Subject.USER, 5, True),
        (Subject.AGENT, 300, False),
        (Subject.USER, 300, False),
        (Subject.WORKSPACE, 7200, False),
    ]
    assert [NOW_S - span.since_s for span in room.windows.asked] == [60, 3600, 3600, 86_400]
    assert (room.filling.operations, room.filling.committed, room.outcomes) == ({"op": NOW_S}, ["ws"], ["complete"])


@pytest.mark.parametrize("ahead_s", [-7200.0, 7200.0])
async def test_where_redis_has_another_time_than_the_registry_only_what_it_tells_is_asked_for(ahead_s: float) -> None:
    room = Room(database_s=NOW_S - ahead_s)
    assert await room.rebuilds.rebuilt("ws")
    for span in room.windows.asked:
        assert 0 < NOW_S - ahead_s - span.since_s < 26 * 3600


async def test_what_is_too_much_is_asked_for_in_coarser_cells_and_counts_as_late_as_it_may_have_been(room: Room) -> None:
    room.windows.refusals = [None, None, WindowTooLarge("too many cells")]
    begin = NOW_S // 3600 * 3600
    room.windows.used = [Used("ada", begin, Cost(5, 0, 0))]
    assert await room.rebuilds.rebuilt("ws")
    (coarse,) = [span for span in room.windows.asked if span.cell_s == 3600]
    assert coarse.subject is Subject.USER
    hourly = [counter for counter in room.filling.counters if counter.meter == USER_HOUR]
    assert hourly == [Counter("ada", USER_HOUR, {int(NOW_S // 300): 5})]


async def test_of_too_many_operations_fewer_are_asked_for(room: Room) -> None:
    room.windows.refusals = [WindowTooLarge("too many operations")] * 3
    assert await room.rebuilds.rebuilt("ws")
    assert [span.operations_s for span in room.windows.asked[:4]] == [3600, 3600, 600, 60]


async def test_a_registry_that_is_busy_is_asked_again_and_one_that_fails_is_not(room: Room) -> None:
    room.windows.refusals = [Overloaded("busy"), None, PeerUnavailable("away")]
    assert not await room.rebuilds.rebuilt("ws")
    assert len(room.windows.asked) == 3
    assert (room.filling.committed, room.outcomes) == ([], ["failed"])
    assert await room.rebuilds.rebuilt("ws")


async def test_who_finds_another_at_it_waits_for_that(room: Room) -> None:
    room.filling.begun = [Begun.CLAIMED, Begun.CLAIMED, Begun.COMPLETE]
    assert await room.rebuilds.rebuilt("ws")
    assert not room.windows.asked


async def test_who_has_lost_the_claim_begins_again(room: Room) -> None:
    room.filling.begun = [NOW_S, NOW_S, Begun.CLAIMED, Begun.COMPLETE]
    assert await room.rebuilds.rebuilt("ws")
    assert len(room.windows.asked) == 1
    assert not room.filling.committed


async def test_without_redis_nothing_is_set_up(room: Room) -> None:
    room.filling.is_away = True
    assert not await room.rebuilds.rebuilt("ws")
    assert room.outcomes == ["failed"]


async def test_of_many_workspaces_eight_are_set_up_at_once_and_of_one_once(room: Room) -> None:
    room.windows.gate = asyncio.Event()
    asking: list[asyncio.Task[Any]] = [asyncio.create_task(room.rebuilds.rebuilt(f"ws-{number}")) for number in range(8)]
    asking += [asyncio.create_task(room.rebuilds.rebuilt("ws-0")) for _ in range(3)]
    await until(lambda: len(room.windows.asked) == 8)
    assert not await room.rebuilds.rebuilt("one more")
    room.windows.gate.set()
    assert all(await asyncio.gather(*asking))
    assert len(room.windows.asked) == 8 * 4
    assert await room.rebuilds.rebuilt("one more")
