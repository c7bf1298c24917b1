"""The journal: turns that were accepted while Postgres did not answer."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from twofold_chassis.redis import Argument, RedisLink, losable
from twofold_chassis.refusals import RequestReused
from twofold_memory import keys
from twofold_memory.cache.scripts import script
from twofold_memory.encoding import element, entries_of
from twofold_memory.journaled import EntryKey, Journaled, entry, ids, payload
from twofold_memory.threads import WINDOW_BYTES_MAX, ConversationErased, JournalFull, KeptTurn, ThreadKey

_TURNS_MAX = 64
_BYTES_MAX = 8 * 1024 * 1024
_THREADS_MAX = 10_000


class Put(NamedTuple):
    """That a turn lies in the journal: what it waits for, and whether it had been there before."""

    prevs: frozenset[str]
    duplicate: bool


class RedisJournal:
    """What waits, by thread, and an index of the threads. None means that nobody can know."""

    def __init__(self, link: RedisLink, *, ttl_s: float, messages_max: int) -> None:
        self._link = link
        self._ttl_ms = round(ttl_s * 1000)
        self._messages_max = messages_max
        self._waiting = script("waiting")
        self._journal = script("journal")
        self._settle = script("settle", behind="window")
        self._index = script("index")
        self._unindex = script("unindex")

    @property
    def weak(self) -> bool:
        """Whether what waits may be evicted."""
        return self._link.weak

    async def count(self, key: ThreadKey) -> int | None:
        """How many turns of the thread wait; None if nobody can know."""
        return await losable(self._link.call("LLEN", keys.thread_waiting(key)), otherwise=None)

    async def counts(self, threads: Sequence[ThreadKey]) -> list[int | None]:
        """The same for some threads at once."""
        if len(threads) == 1:
            return [await self.count(threads[0])]
        return await asyncio.gather(*map(self.count, threads))

    async def waiting(self, key: ThreadKey) -> list[Journaled] | None:
        """The turns of the thread that wait, in order; None if nobody can know."""
        reply = await losable(self._link.run(self._waiting, keys.all_of_thread(key), ()), otherwise=None)
        return None if reply is None else waiting_of(key, reply)

    async def index(self, key: ThreadKey, token: str) -> bool:
        """Notes that turns of the thread may wait; whether that is sure. Raises JournalFull."""
        name = keys.journal(keys.journal_shard(key))
        reply = await losable(self._link.run(self._index, (name,), (_name(key), token, _THREADS_MAX)), otherwise=None)
        if reply == b"FULL":
            raise _full("too many conversations wait for the durable store")
        return reply is not None

    async def put(self, journaled: Journaled, *, after: str | None, again: bool) -> Put | None:
        """Puts a turn behind all that waits; None if that is not sure. `again`: a copy of one that was there before.

        Raises RequestReused, ConversationErased, JournalFull.
        """
        turn = journaled.turn
        arguments: tuple[Argument, ...] = (
            turn.turn_id,
            turn.payload_hash.hex(),
            journaled.worker,
            journaled.since_ms,
            payload(turn),
            _TURNS_MAX,
            _BYTES_MAX,
            after or "",
            "=" + "\t".join(sorted(journaled.prevs)) if again else "",
        )
        reply = await losable(self._link.run(self._journal, keys.all_of_thread(turn.key), arguments), otherwise=None)
        if reply is None:
            return None
        match reply[0]:
            case b"OK":
                return Put(ids(reply[2]), bool(reply[1]))
            case b"CONFLICT":
                raise RequestReused(
                    f"the request id {turn.turn_id!r} was used for another turn of this conversation",
                    request_id=turn.turn_id,
                )
            case b"ERASED":
                raise ConversationErased("the conversation is erased", thread_id=turn.key.thread_id)
            case _:
                raise _full("too many turns of this conversation wait for the durable store")

    async def settle(
        self,
        key: ThreadKey,
        done: Sequence[EntryKey],
        stored: Mapping[EntryKey, KeptTurn],
        inserted: Mapping[EntryKey, Journaled],
    ) -> None:
        """Takes turns out of the journal that Postgres has or refuses, and tells the window of those it has.

        The messages are those of turns that were `inserted` just now: of others they may have been changed since.
        """
        owner = next((turn.owner for turn in stored.values()), None)
        arguments: list[Argument] = [self._ttl_ms, self._messages_max, WINDOW_BYTES_MAX, owner or "", len(done)]
        for turn_id, payload_hash in done:
            arguments += (turn_id, payload_hash.hex())
        for name, kept in sorted(stored.items(), key=lambda item: item[1].first_seq):
            journaled = inserted.get(name)
            entries = (
                []
                if journaled is None
                else entries_of(journaled.turn.messages, kept.first_seq, name.turn_id, kept.created_at)
            )
            arguments += (kept.epoch, kept.first_seq, kept.last_seq, len(entries), *map(element, entries))
        await losable(self._link.run(self._settle, keys.all_of_thread(key), arguments), otherwise=None)

    async def indexed(self, shard: int) -> dict[ThreadKey, str]:
        """The threads of a part of the index, each with its token. Raises RedisUnavailable."""
        reply = await self._link.call("HGETALL", keys.journal(shard))
        pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        return {key: token.decode() for name, token in pairs if (key := _named(name)) is not None}

    async def unindex(self, key: ThreadKey, token: str) -> None:
        """Forgets a thread, unless somebody has noted it anew."""
        name = keys.journal(keys.journal_shard(key))
        await losable(self._link.run(self._unindex, (name,), (_name(key), token)), otherwise=None)


def waiting_of(key: ThreadKey, reply: Sequence[bytes]) -> list[Journaled]:
    """What `waiting.lua` and `look.lua` return of the journal; what nobody can read is left where it lies."""
    found = []
    for turn_id, value in zip(reply[::2], reply[1::2], strict=True):
        try:
            found.append(entry(turn_id.decode(), value, key))
        except ValueError:  # written by another version, or by hand
            continue
    return found


def _name(key: ThreadKey) -> str:
    return json.dumps(key, ensure_ascii=False, separators=(",", ":"))


def _named(name: bytes) -> ThreadKey | None:
    """What `_name` wrote; None for anything else, which is left where it lies."""
    try:
        return ThreadKey(*json.loads(name))
    except (ValueError, TypeError):
        return None


def _full(message: str) -> JournalFull:
    return JournalFull(message, retry_after_s=1.0)
