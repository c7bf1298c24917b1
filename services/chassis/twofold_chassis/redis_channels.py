"""Channels of Redis: one connection that listens for a whole process, beside the link that carries its commands.

What is published while nobody listens is lost for ever, so a channel is never more than a hint: who needs what it hints at
reads it where it is kept, once the subscription is confirmed, at every hint, whenever something may have been missed, and
now and then.
"""

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from twofold_chassis.alongside import alongside
from twofold_chassis.redis_opening import About, Address, Opening, asked, at
from twofold_chassis.redis_sentinel import masters
from twofold_chassis.redis_wire import RedisUnavailable
from twofold_chassis.settings import RedisSettings

Heard = Callable[[bytes], None]
Missed = Callable[[], None]

CHANNELS_MAX = 200_000
_NAMES_AT_ONCE = 500
_PING_S = 1.0
_SILENT_S = 3.0
_AGAIN_S = (0.05, 0.2)
_TURNS_MAX = 100
_UNSENT_BYTES_MAX = 64 * 1024 * 1024


class _Channel:
    """Who listens to one channel. `was_lost`: it was confirmed on a connection that is gone."""

    __slots__ = ("confirmed", "listeners", "was_lost")

    def __init__(self) -> None:
        self.listeners: dict[Heard, Missed | None] = {}
        self.confirmed = asyncio.Event()
        self.was_lost = False


class RedisChannels:
    """Listens to channels of one server, of the master that sentinels name, or of a cluster, where any node hears all.

    It connects when the first listener comes, again whenever the connection is lost, and then subscribes to everything anew.
    Listeners are called in the event loop, and must return at once; what they raise is logged, and ends nothing.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self._budget_s = settings.budget_ms / 1000
        self._nodes = _Nodes((settings.host, settings.port)) if settings.cluster else None
        places = masters(settings) if settings.sentinels else at((settings.host, settings.port))
        if self._nodes is not None:
            places = self._nodes.places
        self._opening = Opening(settings, places, masters_only=bool(settings.sentinels), in_cluster=settings.cluster)
        self._channels: dict[bytes, _Channel] = {}
        self._connection: AbstractConnection | None = None
        # SUBSCRIBEs on their way, by name: the confirmation of a former one says nothing of the newest.
        self._expected: Counter[bytes] = Counter()
        self._outgoing: list[bytes] = []
        self._heard_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._away = False
        # Changes with every connection that is made and with every one that is lost.
        self.generation = 0
        self._logger = structlog.get_logger("twofold.redis")

    @property
    def connected(self) -> bool:
        """Whether there is a connection now. That it is open does not say that it hears."""
        return self._connection is not None

    async def subscribe(self, name: str, heard: Heard, missed: Missed | None = None) -> None:
        """Calls `heard` with each message of the channel, from some moment before this returns.

        `missed` is called when something may have been missed, after it is heard again. Raises RedisUnavailable if Redis has
        not confirmed within the budget: then nobody listens.
        """
        key = name.encode()
        channel = self._channels.get(key)
        if channel is None:
            if len(self._channels) >= CHANNELS_MAX:
                raise RedisUnavailable("too many channels")
            channel = self._channels[key] = _Channel()
            self._ask(key)
        channel.listeners[heard] = missed
        if self._task is None:
            self._task = asyncio.create_task(self._listen())
        if channel.confirmed.is_set():
            return
        try:
            async with asyncio.timeout(self._budget_s):
                await channel.confirmed.wait()
        except TimeoutError:
            self._forget(key, channel, heard)
            raise RedisUnavailable("the subscription was not confirmed within the budget") from None
        except asyncio.CancelledError:
            self._forget(key, channel, heard)
            raise

    def unsubscribe(self, name: str, heard: Heard) -> None:
        """`heard` is not called any more. Nothing happens if it was not subscribed."""
        key = name.encode()
        channel = self._channels.get(key)
        if channel is not None:
            self._forget(key, channel, heard)

    def give_up(self, reason: str) -> None:
        """Gives the connection up, as somebody knows that it does not hear; another one is made at once."""
        self._tell_away(reason)
        self._lose()

    async def close(self) -> None:
        """Nobody is called any more."""
        self._channels.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _forget(self, key: bytes, channel: _Channel, heard: Heard) -> None:
        channel.listeners.pop(heard, None)
        if not channel.listeners and self._channels.get(key) is channel:
            del self._channels[key]
            self._send("UNSUBSCRIBE", key)

    async def _listen(self) -> None:
        while True:
            try:
                connection, about = await self._opening.open()
                await self._stay(connection, about)
            except (RedisError, OSError, TimeoutError) as error:
                self._tell_away(_one_line(error))
            except Exception as error:
                # Whatever it was, the next connection must come: without one nobody would hear anything again.
                self._logger.error("listening failed", exc_info=error)
            await asyncio.sleep(random.uniform(*_AGAIN_S))

    async def _stay(self, connection: AbstractConnection, about: About) -> None:
        """On this connection until it is lost."""
        try:
            if self._nodes is not None:
                await self._nodes.learn(connection, about.address)
            self._begin(connection)
            async with alongside(self._ping()):
                await self._read(connection)
        finally:
            if self._connection is connection:
                self._lose()
            await connection.disconnect(nowait=True)

    def _begin(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self.generation += 1
        self._expected.clear()
        self._heard_at = asyncio.get_running_loop().time()
        if self._away:
            self._away = False
            self._logger.info("channels of redis are heard again")
        names = iter(self._channels)
        while some := tuple(itertools.islice(names, _NAMES_AT_ONCE)):
            self._ask(*some)

    def _lose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self.generation += 1
        self._outgoing.clear()
        for channel in self._channels.values():
            channel.was_lost = channel.was_lost or channel.confirmed.is_set()
            channel.confirmed.clear()
        if connection._writer is not None:
            connection._writer.transport.abort()  # whoever reads from it notices

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_PING_S)
            if loop.time() - self._heard_at > _SILENT_S + _PING_S:
                self.give_up("no answer for too long")
                return
            self._send("PING")

    async def _read(self, connection: AbstractConnection) -> None:
        loop = asyncio.get_running_loop()
        for turn in itertools.count(1):
            try:
                told: Any = await connection.read_response(disable_decoding=True, timeout=math.inf)
            except (
                ResponseError
            ) as error:  # a right that is missing: who waits for its channel hears that it is not confirmed
                self._logger.error("redis refused a command", command="SUBSCRIBE", reason=str(error)[:200])
                continue
            if self._connection is not connection:
                return
            self._heard_at = loop.time()
            if isinstance(told, list):
                self._hear(told)
            if turn % _TURNS_MAX == 0:  # what has arrived already is read without letting anybody else come to his turn
                await asyncio.sleep(0)

    def _hear(self, told: Sequence[Any]) -> None:
        kind, *rest = told
        if kind == b"message":
            channel = self._channels.get(rest[0])
            for heard in tuple(channel.listeners) if channel is not None else ():
                self._call(heard, rest[1])
        elif kind == b"subscribe":
            self._confirmed(rest[0])

    def _confirmed(self, key: bytes) -> None:
        self._expected[key] -= 1
        if self._expected[key] > 0:
            return
        del self._expected[key]
        channel = self._channels.get(key)
        if channel is None:
            return
        channel.confirmed.set()
        if channel.was_lost:
            channel.was_lost = False
            for missed in tuple(channel.listeners.values()):
                if missed is not None:
                    self._call(missed)

    def _call(self, listener: Callable[..., None], *told: bytes) -> None:
        try:
            listener(*told)
        except Exception as error:
            self._logger.error("a listener failed", exc_info=error)

    def _ask(self, *keys: bytes) -> None:
        if self._connection is not None:
            self._expected.update(keys)
            self._send("SUBSCRIBE", *keys)

    def _send(self, *command: str | bytes) -> None:
        if self._connection is None:
            return
        self._outgoing.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its types know tuples of one element
        if len(self._outgoing) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        packed, self._outgoing = self._outgoing, []
        if self._connection is None or not packed:
            return
        writer = self._connection._writer
        if writer is not None:
            writer.writelines(packed)
            if writer.transport.get_write_buffer_size() > _UNSENT_BYTES_MAX:
                self.give_up("it does not read")

    def _tell_away(self, reason: str) -> None:
        if not self._away:
            self._away = True
            self._logger.warning("channels of redis are not heard", reason=reason)


class _Nodes:
    """The nodes of a cluster. Each time another one is the first: one that was cut off is open, and hears nothing."""

    def __init__(self, seed: Address) -> None:
        self._seed = seed
        self._known: list[Address] = []
        self._turn = 0

    async def places(self) -> Sequence[Address]:
        known = self._known
        self._turn += 1
        begin = self._turn % len(known) if known else 0
        return [*known[begin:], *known[:begin], self._seed]

    async def learn(self, connection: AbstractConnection, address: Address) -> None:
        """Who the masters are, as this node says. Raises RedisError, OSError, TimeoutError."""
        ranges: list[Any] = await asked(connection, "CLUSTER", "SLOTS")
        found = {((name or b"").decode() or address[0], port) for _, _, (name, port, *_), *_ in ranges}
        if found:
            self._known = sorted(found)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or "no answer in time"
