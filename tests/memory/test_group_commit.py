"""Group commit by itself, with a store that is told what to do: every caller learns what became of their own turn."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry

from twofold_chassis.breaker import Breaker
from twofold_chassis.refusals import Busy, InvalidField, Overloaded, StoreUnavailable
from twofold_memory.appends import Appends
from twofold_memory.draining import Drained
from twofold_memory.threads import (
    Appended,
    Candidate,
    Entry,
    JournaledTurn,
    KeptTurn,
    NewMessage,
    NewTurn,
    ThreadKey,
    Wanted,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Store:
    """Stores what it is given, after `judge` has had its say on the batch."""

    def __init__(self, judge: Callable[[Sequence[NewTurn]], None] = lambda turns: None) -> None:
        self.judge = judge
        self.batches: list[list[str]] = []
        self.existing: set[ThreadKey] | None = None
        self.stored: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def append(self, turns: Sequence[Candidate]) -> list[Appended]:
        await self.gate.wait()
        self.judge([candidate.turn for candidate in turns])
        self.batches.append([candidate.turn.turn_id for candidate in turns])
        return [self._stored(candidate.turn, candidate.is_new) for candidate in turns]

    def _stored(self, turn: NewTurn, is_new: bool) -> Appended:
        if self.existing is not None and turn.key not in self.existing and not is_new:
            return Appended("MISSING", None)
        is_duplicate = turn.turn_id in self.stored
        self.stored.add(turn.turn_id)
        kept = KeptTurn(1, len(turn.messages), 1, NOW, None, is_duplicate)
        return Appended("DUPLICATE" if is_duplicate else "STORED", kept)


class Cache:
    def __init__(self) -> None:
        self.told: list[tuple[ThreadKey, int]] = []

    async def extend(self, key: ThreadKey, turns: Sequence[tuple[KeptTurn, Sequence[Entry]]]) -> None:
        self.told += [(key, len(entries)) for _, entries in turns]


class Journal:
    """One in which nothing waits, and which takes nothing."""

    def holds(self, key: ThreadKey) -> bool:
        return False

    async def counts(self, threads: Sequence[ThreadKey]) -> list[int | None]:
        return [0] * len(threads)

    async def put(self, turn: NewTurn, *, unknown: bool) -> JournaledTurn:
        raise StoreUnavailable("no journal", outcome="UNKNOWN" if unknown else "NOT_STORED")

    async def drain(self, key: ThreadKey) -> Drained:
        return Drained()


def turn(thread: str, turn_id: str, *, size: int = 1) -> NewTurn:
    message = NewMessage(2, "text", b"", None)
    return NewTurn(ThreadKey("w", thread), None, turn_id, b"hash", [message] * size, size)


def appends_on(store: Store) -> Appends:
    return appends_with(store, Cache())


def appends_with(store: Store, cache: Cache, journal: Journal | None = None) -> Appends:
    waiting = journal or Journal()
    return Appends(store, cache, waiting, breaker=Breaker(), lanes=1, commit_s=60, metrics=CollectorRegistry())


def is_gone(turns: Sequence[NewTurn]) -> None:
    raise StoreUnavailable("gone", outcome="NOT_STORED")


async def results(appends: Appends, turns: Sequence[NewTurn]) -> list[object]:
    return list(await asyncio.gather(*map(appends.append, turns), return_exceptions=True))


async def test_one_thread_that_is_held_fails_alone_and_all_its_turns_wait_once() -> None:
    """M18."""

    def judge(turns: Sequence[NewTurn]) -> None:
        if any(turn.key.thread_id == "held" for turn in turns):
            raise Busy("held")

    store = Store(judge)
    turns = [turn("held" if index % 3 == 0 else f"t{index % 3}", f"{index}") for index in range(30)]
    for index, result in enumerate(await results(appends_on(store), turns)):
        assert isinstance(result, Busy if index % 3 == 0 else KeptTurn)
    assert all(len(batch) == 10 for batch in store.batches)


async def test_one_value_that_cannot_be_stored_is_refused_alone() -> None:
    def judge(turns: Sequence[NewTurn]) -> None:
        if any(turn.turn_id == "7" for turn in turns):
            raise InvalidField("messages", "poison")

    turns = [turn(f"t{index % 3}", f"{index}") for index in range(12)]
    for index, result in enumerate(await results(appends_on(Store(judge)), turns)):
        assert isinstance(result, InvalidField if index == 7 else KeptTurn)


async def test_who_was_stored_is_told_so_although_the_store_went_away_for_others_of_the_batch() -> None:
    """A turn that is stored must never be answered NOT_STORED."""
    calls = 0

    def judge(turns: Sequence[NewTurn]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Busy("one of them is held")
        if turns[0].key.thread_id == "t2":
            raise StoreUnavailable("gone", outcome="NOT_STORED")

    store = Store(judge)
    turns = [turn(f"t{index}", f"{index}") for index in range(4)]
    told = await results(appends_on(store), turns)
    assert [isinstance(result, KeptTurn) for result in told] == [True, True, False, True]


async def test_a_defect_of_the_store_reaches_each_caller_and_the_next_batch_goes_on() -> None:
    defects = [RuntimeError("defect")]

    def judge(turns: Sequence[NewTurn]) -> None:
        if defects:
            raise defects.pop()

    appends = appends_on(Store(judge))
    assert all(isinstance(result, RuntimeError) for result in await results(appends, [turn("t", f"{i}") for i in range(3)]))
    assert isinstance((await results(appends, [turn("t", "3")]))[0], KeptTurn)


async def test_a_thread_that_was_known_and_is_gone_is_made_again() -> None:
    """After a restored database; it once waited for ever, because the lane that should take it had just run dry."""
    store = Store()
    appends = appends_on(store)
    await appends.append(turn("t", "1"))
    store.existing = set()
    async with asyncio.timeout(10):
        await appends.append(turn("t", "2"))
    assert store.batches == [["1"], ["2"], ["2"]]


async def test_two_of_one_id_are_never_in_one_batch() -> None:
    store = Store()
    store.gate.clear()
    appends = appends_on(store)
    calls = [asyncio.create_task(appends.append(turn("t", "same"))) for _ in range(5)]
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(*calls)
    assert store.batches == [["same"]] * 5


async def test_a_turn_that_is_found_stored_is_told_to_the_window_without_its_messages() -> None:
    """M7, race 1: they may have been edited since."""
    cache = Cache()
    appends = appends_with(Store(), cache)
    for _ in range(3):
        await appends.append(turn("t", "same", size=2))
    await appends.drain()
    assert [entries for _, entries in cache.told] == [2, 0, 0]


async def test_a_caller_who_goes_away_changes_nothing_and_drain_waits_for_what_was_accepted() -> None:
    store = Store()
    store.gate.clear()
    appends = appends_on(store)
    calls = [asyncio.create_task(appends.append(turn("t", f"{index}"))) for index in range(3)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    draining = asyncio.create_task(appends.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    store.gate.set()
    await draining
    assert sorted(itertools.chain(*store.batches)) == ["0", "1", "2"]


class Waits(Journal):
    """One in which something waits, so that all that comes goes there too, and which says nothing certain of it."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.taken: list[str] = []

    async def counts(self, threads: Sequence[ThreadKey]) -> list[int | None]:
        return [self.waiting] * len(threads)

    async def put(self, turn: NewTurn, *, unknown: bool) -> JournaledTurn:
        self.taken.append(turn.turn_id)
        raise StoreUnavailable("its reply was lost", outcome="UNKNOWN")


@pytest.mark.parametrize("waiting", [0, 1])
async def test_what_was_accepted_is_journaled_although_its_caller_went_away_before_it_had_to_be(waiting: int) -> None:
    """M4: others wait, or the store goes away; either turns out only when the caller has gone."""
    journal = Waits(waiting)
    appends = appends_with(Store(is_gone), Cache(), journal)
    call = asyncio.create_task(appends.append(turn("t", "1")))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    await appends.drain()
    assert journal.taken == ["1"]


async def test_a_turn_that_may_lie_in_the_journal_is_not_called_not_stored() -> None:
    appends = appends_with(Store(is_gone), Cache(), Waits(0))
    with pytest.raises(StoreUnavailable) as refused:
        await appends.append(turn("t", "1"), Wanted.JOURNALED)
    assert refused.value.metadata["outcome"] == "UNKNOWN"


async def test_more_than_can_wait_are_refused_as_overload_and_not_queued_for_ever() -> None:
    store = Store()
    store.gate.clear()
    appends = appends_on(store)
    calls = [asyncio.create_task(appends.append(turn(f"t{index}", "x"))) for index in range(2600)]
    for _ in range(5):
        await asyncio.sleep(0)
    store.gate.set()
    told = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in told if isinstance(result, Overloaded)]
    assert 0 < len(refused) < 2600
    assert sum(map(len, store.batches)) == 2600 - len(refused)
    with pytest.raises(Overloaded):
        raise refused[0]
