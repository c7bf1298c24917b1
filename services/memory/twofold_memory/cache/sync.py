"""Redis as an operator sees it."""

import asyncio
import json
from collections.abc import Sequence

from twofold_chassis.redis import RedisLink, Reply, losable
from twofold_memory import keys
from twofold_memory.sync_status import INDEXED_MAX, Index, RedisState
from twofold_memory.threads import ThreadKey

_AT_ONCE = 250


class RedisSync:
    """What the journal's index tells, and the state of the link."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def state(self) -> RedisState:
        """Whether it answers, and what is believed of it."""
        answers = await self._link.answers()
        return RedisState(answers, self._link.weak, self._link.breaker.open)

    async def index(self) -> Index | None:
        """The threads of the index and what waits in some of them; None if nobody can know."""
        return await losable(self._counted(), otherwise=None)

    async def _counted(self) -> Index:
        names = [keys.journal(shard) for shard in range(keys.JOURNAL_SHARDS)]
        sizes: list[int] = await asyncio.gather(*(self._link.call("HLEN", name) for name in names))
        threads: list[ThreadKey] = []
        for name, size in zip(names, sizes, strict=True):
            if size and len(threads) < INDEXED_MAX:
                threads += await self._some(name, INDEXED_MAX - len(threads))
        lengths: list[int] = []
        for begin in range(0, len(threads), _AT_ONCE):
            some = threads[begin : begin + _AT_ONCE]
            lengths += await asyncio.gather(*(self._link.call("LLEN", keys.thread_waiting(key)) for key in some))
        # A thread that came between the looks is counted as there.
        return Index(max(sum(sizes), len(threads)), len(threads), sum(map(bool, lengths)), sum(lengths))

    async def _some(self, name: str, count: int) -> Sequence[ThreadKey]:
        """Threads of one part of the index, `count` at most. A scan may tell of one twice."""
        found: set[ThreadKey] = set()
        cursor = b"0"
        while True:
            cursor, reply = await self._link.call("HSCAN", name, cursor, "COUNT", _AT_ONCE)
            found.update(map(_thread, _fields(reply)))
            if cursor == b"0" or len(found) >= count:
                return list(found)[:count]


def _fields(reply: Reply) -> Sequence[bytes]:
    return list(reply) if isinstance(reply, dict) else reply[::2]


def _thread(name: bytes) -> ThreadKey:
    return ThreadKey(*json.loads(name))
