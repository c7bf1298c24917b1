"""Rounds of purges, with a store and a copy that fail when they are told to."""

from collections.abc import Sequence

import pytest

from twofold_chassis.refusals import StoreUnavailable
from twofold_memory.purges import Purge, Purges
from twofold_memory.threads import ThreadKey


class Store:
    def __init__(self, *purges: Purge) -> None:
        self.all = sorted(purges)
        self.open = list(self.all)
        self.error: Exception | None = None

    async def due(self, count: int) -> Sequence[Purge]:
        if self.error:
            raise self.error
        return self.open[:count]

    async def recent(self, behind: ThreadKey, count: int) -> Sequence[Purge]:
        return [purge for purge in self.all if purge.key > behind][:count]

    async def done(self, purge: Purge) -> None:
        if purge in self.open:
            self.open.remove(purge)

    async def forget(self, count: int) -> None:
        pass


class Cache:
    def __init__(self) -> None:
        self.generation = 1
        self.answers = True
        self.fences = True
        self.fenced: list[ThreadKey] = []

    async def connected(self) -> int | None:
        return self.generation if self.answers else None

    async def fence(self, key: ThreadKey, epoch: int, erased: bool) -> bool:
        if self.fences:
            self.fenced.append(key)
        return self.fences


def purge(number: int) -> Purge:
    return Purge(ThreadKey("w", f"{number:04}"), 2)


async def test_a_round_does_everything_however_much_it_is_and_then_copies_may_answer() -> None:
    store, cache = Store(*map(purge, range(700))), Cache()
    purges = Purges(store, cache)
    assert not purges.settled
    await purges.round()
    assert purges.settled
    assert not store.open
    assert set(cache.fenced) == {purge(number).key for number in range(700)}


async def test_what_is_not_done_for_sure_lets_no_copy_answer() -> None:
    store, cache = Store(), Cache()
    purges = Purges(store, cache)
    await purges.round()
    cache.fences = False
    store.all = store.open = [purge(1)]
    await purges.round()
    assert not purges.settled
    cache.fences = True
    await purges.round()
    assert purges.settled


async def test_behind_another_connection_everything_is_done_again_by_each_worker_itself() -> None:
    store, cache, other = Store(purge(1), purge(2)), Cache(), Cache()
    await Purges(store, other).round()
    purges = Purges(store, cache)
    await purges.round()
    cache.fenced.clear()
    cache.generation = 2
    assert not purges.settled
    await purges.round()
    assert purges.settled
    assert cache.fenced == [purge(1).key, purge(2).key]


async def test_without_a_connection_nothing_is_settled() -> None:
    cache = Cache()
    purges = Purges(Store(), cache)
    await purges.round()
    cache.answers = False
    await purges.round()
    assert not purges.settled


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ZeroDivisionError()])
async def test_whatever_goes_wrong_in_a_round_the_next_one_comes_and_meanwhile_nothing_is_settled(error: Exception) -> None:
    store, cache = Store(), Cache()
    purges = Purges(store, cache)
    store.error = error
    async with purges.repeated():
        assert not purges.settled
        store.error = None
        await purges.round()
        assert purges.settled


async def test_a_deletion_that_fails_during_a_round_keeps_the_round_from_settling() -> None:
    store, cache = Store(), Cache()
    purges = Purges(store, cache)

    class Late(Store):
        async def forget(self, count: int) -> None:
            cache.fences = False
            await purges.do(purge(1))

    purges._store = Late()
    await purges.round()
    assert not purges.settled
