"""The logs of agents in Redis, and the nudges that tell of them.

An event is kept as the wire has it but for its offset, which is its number in the stream: what is told to subscribers is put
together from these bytes.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from twofold_chassis import fields
from twofold_chassis.alongside import alongside
from twofold_chassis.redis import RUN_ID, Argument, RedisLink, RedisNotAsked, RedisUnavailable, Script
from twofold_chassis.redis_channels import RedisChannels
from twofold_chassis.refusals import RequestReused
from twofold_router import keys, wire_events
from twofold_router.events import (
    Appended,
    Entry,
    LogKey,
    LogUnavailable,
    Missed,
    NewEvent,
    Nudged,
    Place,
    Reading,
)

_APPEND = Script.load("twofold_router.lua", "append_events")
_READ = Script.load("twofold_router.lua", "read_events")
_COUNT_MAX = 500
_BYTES_MAX = 256 * 1024
_REQUESTS_MAX = 1000
_MISSES_MAX = 2
_KNOWN, _REUSED = 2, 3


class RedisLogs:
    """The logs. Each keeps `entries_max` entries of `bytes_max` bytes together, and all of it for `ttl_s` after the last."""

    def __init__(self, link: RedisLink, *, ttl_s: float, entries_max: int, bytes_max: int) -> None:
        self._link = link
        self._ttl_ms = int(ttl_s * 1000)
        self._entries_max = entries_max
        self._bytes_max = bytes_max

    async def append(self, log: LogKey, events: Sequence[NewEvent], request_id: str | None) -> Appended:
        now = datetime.now(UTC)
        hashes = (_hash(request_id.encode()), _hash_of(events)) if request_id is not None else ("", "")
        bounds = (self._ttl_ms, self._entries_max, self._bytes_max)
        forms = [wire_events.form(event, now) for event in events]
        channel = keys.event_channel(*log)
        arguments: list[Argument] = [RUN_ID, fields.new_id(), *bounds, *hashes, _REQUESTS_MAX, channel, *forms]
        try:
            what, epoch, first, last = await self._link.run(_APPEND, keys.event_log(*log), arguments)
        except RedisNotAsked:
            raise _unavailable(outcome="NOT_STORED") from None
        except RedisUnavailable:
            raise _unavailable(outcome="UNKNOWN") from None
        if what == _REUSED:
            raise RequestReused("this request_id has published other events", request_id=request_id or "")
        return Appended(epoch.decode(), first, last, duplicate=what == _KNOWN)

    async def follow(self, log: LogKey, place: Place) -> Reading:
        return await self._read(log, fields.new_id(), place, _COUNT_MAX)

    async def head(self, log: LogKey, *, begin: bool) -> Reading:
        return await self._read(log, fields.new_id() if begin else "", Place("", -1), 1)

    async def read(self, log: LogKey, place: Place, count: int) -> Reading:
        return await self._read(log, "", place, count)

    async def _read(self, log: LogKey, new_epoch: str, place: Place, count: int) -> Reading:
        channel = keys.event_channel(*log)
        arguments = (RUN_ID, new_epoch, self._ttl_ms, channel, *place, count, _BYTES_MAX)
        try:
            told: list[Any] = await self._link.run(_READ, keys.event_log(*log), arguments)
        except RedisUnavailable:
            raise _unavailable() from None
        epoch, first, last, is_all, entries = told
        pairs = zip(entries[::2], entries[1::2], strict=True)
        return Reading(epoch.decode(), first, last, [Entry(*pair) for pair in pairs], bool(is_all))


class RedisNudges:
    """Nudges through the channels of Redis. A nudge says how far the log goes, never what stands in it."""

    def __init__(self, channels: RedisChannels) -> None:
        self._channels = channels
        self._heard: dict[tuple[LogKey, Nudged], Callable[[bytes], None]] = {}

    async def listen(self, log: LogKey, nudged: Nudged, missed: Missed) -> None:
        def heard(message: bytes) -> None:
            offset, _, epoch = message.decode().partition(" ")
            nudged(Place(epoch, int(offset)))

        try:
            await self._channels.subscribe(keys.event_channel(*log), heard, missed)
        except RedisUnavailable:
            raise _unavailable() from None
        self._heard[log, nudged] = heard

    def leave(self, log: LogKey, nudged: Nudged) -> None:
        heard = self._heard.pop((log, nudged), None)
        if heard is not None:
            self._channels.unsubscribe(keys.event_channel(*log), heard)


class Probe:
    """Finds out whether the connection that listens hears what the connection that speaks says.

    One that is open and deaf (behind a failover, a network cut one way, a cluster's node that was cut off) looks well to
    everything else. Each `period_s` a number is published; one that was not heard by the next is missed, and after two in a
    row the connection is given up for another one. That one may take longer than a call to Redis may, and is not given up
    for what was published before it was there.
    """

    def __init__(
        self,
        link: RedisLink,
        channels: RedisChannels,
        *,
        period_s: float,
        told: Callable[[bool], None],
        count: Callable[[str], None],
    ) -> None:
        """`told` hears after each probe whether the connection counts as hearing; `count` what came of it."""
        self._link = link
        self._channels = channels
        self._name = keys.event_probe(fields.new_id())
        self._period_s = period_s
        self._told = told
        self._count = count
        self._said = 0
        self._said_in = 0
        self._heard = 0
        self._misses = 0

    @property
    def hears(self) -> bool:
        """Whether fewer than two probes in a row were missed."""
        return self._misses < _MISSES_MAX

    @contextlib.asynccontextmanager
    async def probing(self) -> AsyncIterator[None]:
        """Probes until the block ends."""
        try:
            async with alongside(self._probe_on()):
                yield
        finally:
            self._channels.unsubscribe(self._name, self._hear)

    async def _probe_on(self) -> None:
        while True:
            said = await self._say()
            await asyncio.sleep(self._period_s)
            self._judge(said)

    async def _say(self) -> bool:
        """Whether a number was published that must be heard."""
        self._said_in = self._channels.generation
        with contextlib.suppress(RedisUnavailable):
            await self._channels.subscribe(self._name, self._hear)
        self._said += 1
        try:
            await self._link.call("PUBLISH", self._name, self._said)
        except RedisUnavailable:
            return False
        return True

    def _hear(self, message: bytes) -> None:
        self._heard = int(message)
        if self._heard == self._said and not self.hears:
            self._misses = 0
            self._told(True)

    def _judge(self, said: bool) -> None:
        if not said:
            self._count("away")
            return
        if self._heard == self._said:
            self._count("heard")
            self._misses = 0
        else:
            self._count("missed")
            self._misses += 1
            if not self.hears and self._said_in == self._channels.generation:
                self._channels.give_up("it is open and hears nothing")
        self._told(self.hears)


def _unavailable(**outcome: str) -> LogUnavailable:
    return LogUnavailable("the logs of events cannot be reached", retry_after_s=0.5, **outcome)


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _hash_of(events: Sequence[NewEvent]) -> str:
    """Of all that a caller says of them, unambiguously."""
    parts = [part for event in events for part in (event.type.encode(), event.content_type.encode(), event.payload)]
    return _hash(b"".join(b"%d:%b" % (len(part), part) for part in parts))
