"""The L1 window of threads."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter

from twofold_chassis.redis import Argument, RedisLink, RedisUnavailable, Reply, Script, losable
from twofold_memory import keys
from twofold_memory.cache.journal import waiting_of
from twofold_memory.cache.scripts import script
from twofold_memory.encoding import element, entry_of
from twofold_memory.journaled import Looked
from twofold_memory.threads import WINDOW_BYTES_MAX, Copy, Entry, KeptTurn, Snapshot, ThreadKey


class RedisThreads:
    """Windows in Redis. No method raises because Redis is away: what cannot be written now, the next read repairs."""

    def __init__(self, link: RedisLink, *, ttl_s: float, messages_max: int, metrics: CollectorRegistry) -> None:
        self._link = link
        self._ttl_ms = round(ttl_s * 1000)
        self.messages_max = messages_max
        self._told = Counter(
            "twofold_memory_window_writes", "Writes to L1 windows.", ("script", "outcome"), registry=metrics
        )
        self._look = script("look")
        self._extend = script("extend", behind="window")
        self._fill = script("fill")
        self._fence = script("fence")

    @property
    def is_away(self) -> bool:
        """Whether Redis is believed to be gone."""
        return self._link.breaker.open

    async def look(self, key: ThreadKey, count: int) -> Looked:
        """The window's newest messages and what waits. No copy means there is no window, never that the thread is empty."""
        try:
            window, waiting = await self._link.run(self._look, keys.all_of_thread(key), (count,))
        except RedisUnavailable:
            return Looked(None, (), answered=False)
        return Looked(_copy(window), waiting_of(key, waiting) if waiting else (), answered=True)

    async def extend(self, key: ThreadKey, turns: Sequence[tuple[KeptTurn, Sequence[Entry]]]) -> None:
        """Appends committed turns to the window, in the order of their numbers; one without entries is only told of."""
        arguments: list[Argument] = [self._ttl_ms, self.messages_max, WINDOW_BYTES_MAX, turns[0][0].owner or ""]
        for kept, entries in turns:
            arguments += (kept.epoch, kept.first_seq, kept.last_seq, len(entries), *map(element, entries))
        outcomes = await losable(self._link.run(self._extend, keys.all_of_thread(key), arguments), otherwise=None)
        for outcome in outcomes or [b"UNAVAILABLE"] * len(turns):
            self._told.labels("extend", outcome.decode()).inc()

    async def fill(self, key: ThreadKey, snapshot: Snapshot) -> bool:
        """Replaces the window by a snapshot's newest entries (at least one), unless it is newer; whether that is sure."""
        head, newest = snapshot.head, snapshot.entries[-self.messages_max :]
        return await self._tell(
            self._fill, key, head.epoch, head.next_seq, self._ttl_ms, head.owner or "", *map(element, newest)
        )

    async def fence(self, key: ThreadKey, epoch: int, erased: bool) -> bool:
        """Drops a window that is older than `epoch`, of an erased thread all there is; whether that is sure."""
        return await self._tell(self._fence, key, epoch, self._ttl_ms, int(erased))

    @property
    def generation(self) -> int:
        """A number of the connection that is there now: behind another one may be an older state."""
        return self._link.generation

    async def connected(self) -> int | None:
        """The generation, if Redis answers."""
        return self._link.generation if await self._link.answers() else None

    async def _tell(self, script: Script, key: ThreadKey, *arguments: str | bytes | int) -> bool:
        """Whether the script has run for sure."""
        outcome: bytes | None = await losable(self._link.run(script, keys.all_of_thread(key), arguments), otherwise=None)
        self._told.labels(script.name, outcome.decode() if outcome else "UNAVAILABLE").inc()
        return outcome is not None


def _copy(reply: Reply) -> Copy | None:
    if reply is None:
        return None
    epoch, first, following, owner, elements = reply
    next_seq = int(following)
    begin = next_seq - len(elements)
    try:
        entries = [entry_of(begin + index, value) for index, value in enumerate(elements)]
    except (LookupError, ValueError):
        return None  # written by another version, or by hand
    return Copy(int(epoch), int(first), next_seq, owner.decode() or None, entries)
