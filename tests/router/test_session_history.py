"""The history of sessions is told in batches, again until it is kept, and is bounded; what is lost of it is counted."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from tests.waiting import until
from twofold_chassis.refusals import NotFound, PeerUnavailable
from twofold_router import session_history
from twofold_router.session_history import History, SessionEvent
from twofold_router.sessions import CloseReason, Incarnation, PodLife, Session, SessionKey

NOW_MS = time.time_ns() // 1_000_000


class Keeper:
    """A registry that keeps, is away, or refuses."""

    def __init__(self) -> None:
        self.away = False
        self.refused: set[str] = set()
        self.batches: list[tuple[str, list[SessionEvent]]] = []
        self.tried = 0

    async def record(self, workspace_id: str, events: Sequence[SessionEvent]) -> None:
        self.tried += 1
        await asyncio.sleep(0)
        if self.away:
            raise PeerUnavailable("away", peer="registry")
        if workspace_id in self.refused:
            raise NotFound("no such workspace")
        self.batches.append((workspace_id, list(events)))

    @property
    def kept(self) -> list[str]:
        return [event.session.key.session_id for _, events in self.batches for event in events]


class Dropped:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, count: int) -> None:
        self.count += count


def session(number: int, ws: str = "acme", *, fence: int = NOW_MS) -> Session:
    life = PodLife("gate-1", Incarnation(1, 1))
    return Session(SessionKey(ws, f"s-{number}"), "ada", "helper", life, fence, 0, 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_history, "_GATHER_S", 0.01)
    monkeypatch.setattr(session_history, "_AGAIN_S", (0.01, 0.05))
    monkeypatch.setattr(session_history, "_DRAIN_S", 0.2)


async def test_events_are_told_in_batches_of_one_workspace_in_their_order() -> None:
    keeper, dropped = Keeper(), Dropped()
    history = History(keeper, dropped)
    async with history.telling():
        for number in range(1200):
            history.opened(session(number, "acme" if number % 3 else "other"))
        await until(lambda: len(keeper.kept) == 1200)
    sizes = {ws: [len(events) for name, events in keeper.batches if name == ws] for ws in ("acme", "other")}
    assert sizes == {"acme": [500, 300], "other": [400]}
    for ws in sizes:
        told = [event.session.key.session_id for name, events in keeper.batches if name == ws for event in events]
        assert told == sorted(told, key=lambda one: int(one[2:]))
    assert not dropped.count


async def test_what_is_not_kept_is_told_again_and_what_is_refused_hinders_no_other() -> None:
    keeper, dropped = Keeper(), Dropped()
    history = History(keeper, dropped)
    keeper.away = True
    keeper.refused = {"gone"}
    async with history.telling():
        history.closed(session(1, "gone"), CloseReason.IDLE)
        history.closed(session(2), CloseReason.IDLE)
        await until(lambda: keeper.tried >= 3)
        assert not keeper.kept
        keeper.away = False
        await until(lambda: keeper.kept == ["s-2"])
    assert dropped.count == 1


async def test_too_much_drops_the_oldest_and_what_is_left_at_the_end_is_told_or_counted() -> None:
    keeper, dropped = Keeper(), Dropped()
    history = History(keeper, dropped, events_max=3)
    keeper.away = True
    async with history.telling():
        for number in range(5):
            history.opened(session(number))
        await until(lambda: keeper.tried > 0)
        assert dropped.count == 2
        keeper.away = False
    assert keeper.kept == ["s-2", "s-3", "s-4"]
    keeper.away = True
    async with history.telling():
        history.opened(session(9))
    assert dropped.count == 3


async def test_a_session_was_opened_when_its_fence_was_given_if_that_can_be_believed() -> None:
    keeper = Keeper()
    history = History(keeper, Dropped())
    async with history.telling():
        for fence in (NOW_MS - 5000, 7, NOW_MS + 10**9):
            history.opened(session(fence, fence=fence))
        await until(lambda: len(keeper.kept) == 3)
    times = [event.at_ms for _, events in keeper.batches for event in events]
    assert times[0] == NOW_MS - 5000
    assert all(NOW_MS <= at <= NOW_MS + 10**8 for at in times[1:])
