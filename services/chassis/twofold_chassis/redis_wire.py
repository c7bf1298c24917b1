"""One connection to Redis on which the commands of all callers follow each other, as the protocol allows.

redis-py opens the connection (TLS, passwords, the handshake) and parses replies; what is ours is that nobody waits for a
connection of his own, that commands of one turn of the event loop leave in one write, and that a reply which comes too late
is thrown away in its place instead of poisoning the connection. Through redis-py's pool and pipeline the same costs several
times the processor time, which on the hot path was most of a read.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

Argument = str | bytes | int | float
Reply = Any  # what a command returns: bytes, int, None, a list of these, or the error that Redis answered with

_WAITING_MAX = 4096
_SILENT_S = 1.0
_UNSENT_BYTES_MAX = 64 * 1024 * 1024


class RedisUnavailable(Exception):  # noqa: N818  (a state, not an error of ours)
    """Redis did not answer within its budget, is believed to be gone, or refused. The command may or may not have run."""


class RedisNotAsked(RedisUnavailable):
    """The command was never sent."""


class RedisWire:
    """Sends commands and hands out replies in order.

    `connect` returns a connection that is open. A caller waits at most `budget_s`. What waits is bounded in number and in
    bytes. A connection that stays silent for a second beyond that is given up; the next command opens another. `told` hears
    of each reply (True) and of each command without one (False).
    """

    def __init__(
        self, connect: Callable[[], Awaitable[AbstractConnection]], *, budget_s: float, told: Callable[[bool, str], None]
    ) -> None:
        self._connect = connect
        self._budget_s = budget_s
        self._told = told
        self._connection: AbstractConnection | None = None
        # Changes with every connection that is made and with every one that is lost.
        self.generation = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening = False
        self._closed = False
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        # Commands in the order of their replies, each with the time until which its caller waits.
        self._waiting: deque[tuple[float, asyncio.Future[Reply]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        # When it rings. Not asked of the timer: uvloop's cannot say it if that is at once.
        self._wakes_at = 0.0

    def send(self, command: Sequence[Argument]) -> "asyncio.Future[Reply]":
        """Sends a command; the future gets its reply, an error that Redis answered with, or RedisUnavailable."""
        loop = asyncio.get_running_loop()
        # Packed before it takes its place among those who wait: what cannot be packed is the caller's error alone.
        # (Its types know tuples of one element only.)
        packed = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]
        future: asyncio.Future[Reply] = loop.create_future()
        if len(self._waiting) >= _WAITING_MAX or self._unsent_bytes() + len(packed) > _UNSENT_BYTES_MAX:
            future.set_exception(RedisNotAsked("too many commands wait"))
            future.exception()  # its caller may be gone: that is no "exception was never retrieved"
            return future
        deadline = loop.time() + self._budget_s
        self._waiting.append((deadline, future))
        self._outgoing.append(packed)
        self._outgoing_bytes += len(packed)
        if self._timer is None or self._wakes_at > deadline:
            # It may have been set for a connection that has been silent for long, much later.
            self._wake_at(deadline)
        if self._connection is None:
            if not self._opening:
                self._opening = True
                self._start(self._open())
        elif len(self._outgoing) == 1:
            loop.call_soon(self._flush)
        return future

    @property
    def connected(self) -> bool:
        """Whether a command that is sent in this turn of the event loop leaves on the connection that is there, or never."""
        return self._connection is not None

    def give_up(self, reason: str) -> None:
        """Gives the connection up; the next command opens another. Who still waits for a reply gets none."""
        self._lose(reason)

    async def close(self) -> None:
        """Waits for the replies that are still to come, within the budget, and closes the connection."""
        self._closed = True
        while waiting := [future for _, future in self._waiting if not future.done()]:
            await asyncio.wait(waiting)
        if self._timer is not None:
            self._timer.cancel()
        self._lose("closed")
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _unsent_bytes(self) -> int:
        """What is held here, and in the connection because the server does not read."""
        writer = self._connection._writer if self._connection is not None else None
        return self._outgoing_bytes + (writer.transport.get_write_buffer_size() if writer is not None else 0)

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        reason = "it could not be connected"
        try:
            connection = await self._connect()
            self._connection = connection
            self.generation += 1
        except (RedisError, OSError, TimeoutError) as error:
            reason = _one_line(error)
        finally:
            self._opening = False
            if self._connection is None:
                self._lose(reason)
        if self._connection is None:
            return
        if self._closed:
            self._lose("closed")
            await connection.disconnect(nowait=True)
            return
        self._flush()
        await self._read(connection)

    def _flush(self) -> None:
        if self._connection is None or not self._outgoing:
            return
        packed, self._outgoing, self._outgoing_bytes = self._outgoing, [], 0
        # Not `send_packed_command`, which is a coroutine: a write must not be able to be cancelled halfway.
        writer = self._connection._writer
        if writer is not None:
            writer.writelines(packed)

    async def _read(self, connection: AbstractConnection) -> None:
        reason = "the connection was lost"
        try:
            while True:
                try:
                    reply = await connection.read_response(disable_decoding=True, timeout=math.inf)
                except ResponseError as error:
                    reply = error
                if self._connection is not connection:
                    break  # it was given up with this reply still unread: those who wait now asked another one
                if not self._waiting:
                    break  # nobody asked: replies can no longer be told apart
                _, future = self._waiting.popleft()
                self._told(True, "")
                if future.done():
                    continue
                if isinstance(reply, RedisError):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except (RedisError, OSError, TimeoutError) as error:
            reason = _one_line(error)
        finally:
            if self._connection is connection:
                self._lose(reason)
            await connection.disconnect(nowait=True)

    def _lose(self, reason: str) -> None:
        """Gives the connection up, and tells everybody who waits for a reply."""
        connection, self._connection = self._connection, None
        self.generation += connection is not None
        self._outgoing.clear()
        self._outgoing_bytes = 0
        waiting, self._waiting = self._waiting, deque()
        for _, future in waiting:
            self._give_up(future, reason)
        if connection is not None and connection._writer is not None:
            # Not close(), which would first wait until a server that reads nothing has read everything.
            connection._writer.transport.abort()

    def _look_at_the_clock(self) -> None:
        # Replies that have arrived are handed out before anybody is told that they have not.
        self._timer = None
        asyncio.get_running_loop().call_soon(self._expire)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._waiting and self._waiting[0][0] + _SILENT_S <= now:
            self._lose("no answer for too long")
        following = None
        for deadline, future in self._waiting:
            if deadline > now:
                following = deadline
                break
            self._give_up(future, "no answer within the budget")
        if self._timer is None and self._waiting:
            self._wake_at(following or self._waiting[0][0] + _SILENT_S)

    def _wake_at(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = moment
        self._timer = asyncio.get_running_loop().call_at(moment, self._look_at_the_clock)

    def _give_up(self, future: "asyncio.Future[Reply]", reason: str) -> None:
        if not future.done():
            future.set_exception(RedisUnavailable(reason))
            future.exception()  # its caller may be gone: that is no "exception was never retrieved"
            self._told(False, reason)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or "no answer within the budget"
