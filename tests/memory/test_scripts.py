"""Each Lua script's promises, one by one."""

from collections.abc import Sequence
from typing import Any

import pytest
import redis.asyncio

from twofold_memory import keys
from twofold_memory.cache.scripts import script
from twofold_memory.threads import ThreadKey

Raw = redis.asyncio.Redis
TTL_MS = 60_000


class Scripts:
    """The scripts on the keys of one thread."""

    def __init__(self, raw: Raw, key: ThreadKey) -> None:
        self.raw = raw
        self.names = keys.all_of_thread(key)

    async def run(self, name: str, *arguments: str | bytes | int) -> Any:
        source = script(name, behind="window" if name in ("extend", "settle") else None).source
        return await self.raw.eval(source, 4, *self.names, *arguments)

    async def extend(
        self,
        first: int,
        last: int,
        elements: Sequence[str] = (),
        *,
        epoch: int = 1,
        most: int = 100,
        bytes_most: int = 10**6,
    ) -> str:
        numbers = (TTL_MS, most, bytes_most, "ada", epoch, first, last, len(elements))
        (answer,) = await self.run("extend", *numbers, *elements)
        return str(answer.decode())

    async def fill(self, next_seq: int, elements: Sequence[str], *, epoch: int = 1) -> str:
        answer: bytes = await self.run("fill", epoch, next_seq, TTL_MS, "ada", *elements)
        return answer.decode()

    async def look(self, count: int = 100) -> list[str] | None:
        window, _ = await self.run("look", count)
        return None if window is None else [element.decode() for element in window[4]]


@pytest.fixture
def scripts(raw_redis: Raw, key: ThreadKey) -> Scripts:
    return Scripts(raw_redis, key)


async def test_the_first_turn_of_a_thread_makes_a_window_and_the_next_extends_it(scripts: Scripts) -> None:
    assert await scripts.look() is None
    assert await scripts.extend(1, 2, ["t1", "m2"]) == "OK"
    assert await scripts.extend(3, 4, ["t3", "m4"]) == "OK"
    assert await scripts.look() == ["t1", "m2", "t3", "m4"]
    assert await scripts.look(3) == ["m2", "t3", "m4"]
    for name in scripts.names[:2]:
        assert 0 < await scripts.raw.pttl(name) <= TTL_MS  # M9


async def test_a_later_turn_onto_no_window_leaves_it_cold_and_remembers_the_seq(scripts: Scripts) -> None:
    """M7: the textbook appends, and the list then holds only the last exchange."""
    assert await scripts.extend(3, 4, ["t3", "m4"]) == "COLD"
    assert await scripts.look() is None
    assert await scripts.fill(3, ["t1", "m2"]) == "TOO_OLD"
    assert await scripts.fill(5, ["t1", "m2", "t3", "m4"]) == "FILLED"
    assert await scripts.look() == ["t1", "m2", "t3", "m4"]


async def test_a_turn_onto_a_list_that_was_evicted_or_cut_leaves_it_cold(scripts: Scripts) -> None:
    """M7: the length check."""
    for damage in (scripts.raw.delete, scripts.raw.lpop, scripts.raw.rpop):
        await scripts.raw.delete(*scripts.names)
        await scripts.extend(1, 2, ["t1", "m2"])
        await damage(scripts.names[0])
        assert await scripts.look() is None
        assert await scripts.extend(3, 4, ["t3", "m4"]) == "COLD"
        assert await scripts.look() is None


async def test_a_fill_from_before_an_extension_is_too_old(scripts: Scripts) -> None:
    """Race 11: the snapshot was read, then a turn was told, then the fill arrives."""
    await scripts.extend(1, 2, ["t1", "m2"])
    await scripts.raw.delete(scripts.names[0])
    await scripts.extend(3, 4, ["t3", "m4"])
    assert await scripts.fill(3, ["t1", "m2"]) == "TOO_OLD"
    assert await scripts.look() is None


async def test_a_fill_replaces_and_never_merges(scripts: Scripts) -> None:
    await scripts.fill(5, ["t3", "m4"])
    assert await scripts.fill(5, ["t1", "m2", "t3", "m4"]) == "FILLED"
    assert await scripts.look() == ["t1", "m2", "t3", "m4"]
    assert await scripts.fill(5, ["t3", "m4"]) == "NEWER"
    assert await scripts.fill(7, ["t5", "m6"]) == "FILLED"
    assert await scripts.look() == ["t5", "m6"]


async def test_a_turn_over_a_gap_drops_the_window(scripts: Scripts) -> None:
    await scripts.extend(1, 2, ["t1", "m2"])
    assert await scripts.extend(5, 6, ["t5", "m6"]) == "GAP"
    assert await scripts.look() is None
    assert await scripts.extend(3, 4, ["t3", "m4"]) == "COLD"


async def test_telling_a_turn_twice_or_late_changes_nothing(scripts: Scripts) -> None:
    await scripts.extend(1, 2, ["t1", "m2"])
    await scripts.extend(3, 4, ["t3", "m4"])
    for again in ((1, 2, ["t1", "m2"]), (3, 4, ["t3", "m4"]), (3, 4, []), (1, 2, [])):
        assert await scripts.extend(*again) == "DUP"
    assert await scripts.look() == ["t1", "m2", "t3", "m4"]


async def test_a_turn_that_was_found_does_not_bring_its_payload_back(scripts: Scripts) -> None:
    """Race 1: it may have been edited since."""
    assert await scripts.extend(1, 2) == "COLD"
    assert await scripts.look() is None
    await scripts.fill(3, ["t1", "m2"])
    assert await scripts.extend(3, 4) == "GAP"
    assert await scripts.look() is None


async def test_of_two_epochs_the_older_is_refused_and_the_newer_replaces(scripts: Scripts) -> None:
    await scripts.extend(1, 2, ["t1", "m2"])
    assert await scripts.run("fence", 2, TTL_MS, 0) == b"FENCED"
    assert await scripts.run("fence", 2, TTL_MS, 0) == b"KEPT"
    assert await scripts.look() is None
    assert await scripts.extend(3, 4, ["t3", "m4"]) == "STALE"
    assert await scripts.fill(5, ["t1", "m2", "t3", "m4"]) == "OLD"
    assert await scripts.look() is None
    assert await scripts.fill(3, ["tA", "mB"], epoch=2) == "FILLED"
    assert await scripts.extend(3, 4, ["t3", "m4"], epoch=3) == "COLD"
    assert await scripts.look() is None


async def test_a_full_window_loses_its_oldest_turns_whole(scripts: Scripts) -> None:
    await scripts.extend(1, 3, ["t1", "m2", "m3"], most=5)
    await scripts.extend(4, 5, ["t4", "m5"], most=5)
    assert await scripts.extend(6, 6, ["t6"], most=5) == "OK"
    assert await scripts.look() == ["t4", "m5", "t6"]


async def test_a_turn_larger_than_the_window_leaves_its_end(scripts: Scripts) -> None:
    await scripts.extend(1, 1, ["t1"], most=3)
    await scripts.extend(2, 6, ["t2", "m3", "m4", "m5", "r6"], most=3)
    assert await scripts.look() == ["m4", "m5", "r6"]
    await scripts.extend(7, 7, ["t7"], most=3)
    assert await scripts.look() == ["t7"]


async def test_a_window_is_bounded_in_bytes_too(scripts: Scripts) -> None:
    for seq in range(1, 9):
        await scripts.extend(seq, seq, ["t" + "x" * 99], bytes_most=350)
    assert await scripts.look() == ["t" + "x" * 99] * 3
    assert int(await scripts.raw.hget(scripts.names[1], "bytes") or 0) == 300
    await scripts.extend(9, 9, ["t" + "x" * 999], bytes_most=350)
    assert await scripts.look() == ["t" + "x" * 999]
