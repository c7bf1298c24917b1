"""Followers: who waits for something new in a conversation is woken when there is, whichever worker it was said at.

What this worker commits itself it tells at once. What others commit is found by asking for the heads of all followed threads
together, a few times a second: no session and no channel has to be held open, and what is not told is found all the same.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from twofold_chassis import call
from twofold_chassis.refusals import Overloaded, Refusal
from twofold_memory.threads import Head, ThreadKey

_PERIOD_S = 0.2
_AT_ONCE = 256
_FOLLOWERS_MAX = 1000


class Heads(Protocol):
    """The truth."""

    async def heads(self, keys: Sequence[ThreadKey]) -> list[Head | None]:
        """What is known of each thread; None for one that does not exist."""
        ...


@dataclass(slots=True)
class _Thread:
    """What is known of a followed thread: `version` rises when that changes, `asked_at` is when it was last learnt."""

    head: Head | None = None
    version: int = 0
    asked_at: float = field(default_factory=time.monotonic)
    woken: set[asyncio.Event] = field(default_factory=set)


class Followed:
    """One follower's view of a thread."""

    def __init__(self, thread: _Thread) -> None:
        self._thread = thread
        self._seen = thread.version
        self._woken = asyncio.Event()
        thread.woken.add(self._woken)

    @property
    def asked_at(self) -> float:
        """When Postgres was last heard of this thread, by time.monotonic()."""
        return self._thread.asked_at

    async def changed(self) -> Head | None:
        """Returns what is known of the thread as soon as that has changed. It may be older than what is known otherwise."""
        while self._seen == self._thread.version:
            self._woken.clear()
            await self._woken.wait()
        self._seen = self._thread.version
        return self._thread.head

    def ended(self) -> bool:
        """Follows no more; whether nobody does."""
        self._thread.woken.discard(self._woken)
        return not self._thread.woken


class Followers:
    """All who follow a conversation at this worker."""

    def __init__(self, store: Heads, *, period_s: float = _PERIOD_S, followers_max: int = _FOLLOWERS_MAX) -> None:
        self._store = store
        self._period_s = period_s
        self._followers_max = followers_max
        self._count = 0
        self._threads: dict[ThreadKey, _Thread] = {}
        self._told: set[ThreadKey] = set()
        self._woken = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None

    @property
    def count(self) -> int:
        """How many follow."""
        return self._count

    def told(self, key: ThreadKey) -> None:
        """This worker has committed something to the thread: its followers learn of it at once."""
        if key in self._threads:
            self._told.add(key)
            self._woken.set()

    @contextlib.contextmanager
    def follow(self, key: ThreadKey) -> Iterator[Followed]:
        """Follows a thread for as long as the block runs. Raises Overloaded."""
        if self._count >= self._followers_max:
            raise Overloaded("too many conversations are watched here", retry_after_s=1.0)
        self._count += 1
        thread = self._threads.setdefault(key, _Thread())
        followed = Followed(thread)
        if self._asking is None or self._asking.done():
            self._asking = call.begin_for_all(self._ask())
        try:
            yield followed
        finally:
            self._count -= 1
            if followed.ended():
                del self._threads[key]

    async def close(self) -> None:
        """Asks no more. Nobody may follow any more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> None:
        whole_round_at = 0.0
        while self._threads:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, whole_round_at - time.monotonic())):
                    await self._woken.wait()
            self._woken.clear()
            keys, self._told = self._told, set()
            if time.monotonic() >= whole_round_at:
                keys = set(self._threads)
                whole_round_at = time.monotonic() + self._period_s
            listed = list(keys)
            for begin in range(0, len(listed), _AT_ONCE):
                await self._learn(listed[begin : begin + _AT_ONCE])

    async def _learn(self, keys: Sequence[ThreadKey]) -> None:
        try:
            heads = await self._store.heads(keys)
        except Refusal:
            return  # Postgres is away or busy: `asked_at` tells for how long
        for key, head in zip(keys, heads, strict=True):
            thread = self._threads.get(key)
            if thread is None:
                continue
            thread.asked_at = time.monotonic()
            if thread.version == 0 or head != thread.head:
                thread.head = head
                thread.version += 1
                for woken in thread.woken:
                    woken.set()
