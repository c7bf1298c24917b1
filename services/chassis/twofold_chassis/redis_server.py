"""One Redis server behind one connection: what its errors mean, and what it costs while it does not answer."""

import asyncio
from collections.abc import Callable, Sequence

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)

from twofold_chassis.breaker import Breaker
from twofold_chassis.redis_opening import About, Address, Opening, UnfitRedis, said
from twofold_chassis.redis_wire import Argument, RedisNotAsked, RedisUnavailable, RedisWire, Reply

_RENEW_S = 1.0
# A server that is loading, read-only, out of memory or without its cluster answers, but cannot serve: as good as gone.
_CANNOT_SERVE = (BusyLoadingError, ReadOnlyError, OutOfMemoryError, ClusterDownError, MasterDownError, TryAgainError)
_CANNOT_SERVE_WORDS = ("MISCONF", "BUSY", "NOAUTH")  # those that the library has no class for
_INSIDE_A_SCRIPT = ("-READONLY ", "-OOM ", "-MISCONF ")  # as Redis 6.2 tells of what one of its commands got


class RedisServer:
    """Commands of all callers on one connection, with a breaker.

    `met` hears what is at the other end of each new connection before anybody uses it. `node` is its address if it is one
    of a cluster: then redirections are its callers' affair.
    """

    def __init__(
        self, opening: Opening, met: Callable[[About], None], *, budget_s: float, node: Address | None = None
    ) -> None:
        self.breaker = Breaker()
        self._opening = opening
        self._met = met
        self._in_cluster = node is not None
        self._about: About | None = None
        self._away = False
        self.trouble = ""
        """Why it did not answer when it was asked last; empty if it did."""
        self._complaint = ""
        self._renewed_at = float("-inf")
        named = {} if node is None else {"node": said(node)}
        self._logger = structlog.get_logger("twofold.redis", **named)
        self._wire = RedisWire(self._open, budget_s=budget_s, told=self._told)

    async def call(self, command: Sequence[Argument], *, run_id_at: int = 0, asking: bool = False) -> Reply:
        """One command. Raises RedisUnavailable, NoScriptError, and in a cluster AskError and MovedError.

        `run_id_at`: in this place of the command the server is told its run_id. `asking`: the node shall serve a key whose
        slot is still on its way to it.
        """
        if not self.breaker.admits():
            raise RedisNotAsked("not asked: it did not answer before")
        try:
            if run_id_at:
                command = (*command[:run_id_at], await self._run_id(), *command[run_id_at + 1 :])
            if asking:  # what is sent in one turn of the event loop leaves together
                self._wire.send(("ASKING",)).add_done_callback(_ignored)
            return await self._wire.send(command)
        except NoScriptError:
            raise
        except AskError as error:
            if self._in_cluster:
                raise
            self._logger.error("redis is a cluster: set REDIS__CLUSTER=true", command=str(command[0]))
            raise RedisUnavailable(str(error)) from None
        except RedisError as error:
            raise RedisUnavailable(self._reason(error, command)) from None

    async def _run_id(self) -> str:
        """The run_id of the process to which whatever is sent in this turn of the event loop goes, if it arrives."""
        if not self._wire.connected:
            try:
                await self._wire.send(("PING",))
            except RedisUnavailable as error:
                raise RedisNotAsked(str(error)) from None
        if not self._wire.connected or self._about is None:
            raise RedisNotAsked("the connection was lost")
        return self._about.run_id

    async def look(self) -> list[About]:
        """What is there, seen through a connection of its own; nothing if nobody answers. Raises UnfitRedis."""
        try:
            connection, about = await self._opening.open()
        except UnfitRedis:
            raise
        except (RedisError, OSError, TimeoutError):
            return []
        await connection.disconnect(nowait=True)
        return [about]

    @property
    def weak(self) -> bool:
        """Whether the server that is, or was last, connected may drop what shall stay."""
        return self._about is not None and not self._about.keeps

    @property
    def generation(self) -> int:
        """A number of the connection that is there now, and another one while there is none."""
        return self._wire.generation

    async def close(self) -> None:
        """Waits for what is under way and closes the connection."""
        await self._wire.close()

    async def _open(self) -> AbstractConnection:
        try:
            connection, self._about = await self._opening.open()
        except UnfitRedis as error:
            if self._complaint != str(error):
                self._complaint = str(error)
                self._logger.error("redis is unfit", reason=self._complaint)
            raise
        self._met(self._about)
        return connection

    def _reason(self, error: RedisError, command: Sequence[Argument]) -> str:
        """Why a command was refused; operators are told if it is not the server's state."""
        reason = str(error)[:200]
        told = next((word for word in _INSIDE_A_SCRIPT if word in reason), "")
        if isinstance(error, ReadOnlyError) or told == "-READONLY ":
            self._renew()
        elif not (told or isinstance(error, _CANNOT_SERVE) or reason.startswith(_CANNOT_SERVE_WORDS)):
            # A key of another type, a missing right, a script that fails: somebody must look, nobody shall suffer.
            self._logger.error("redis refused a command", command=str(command[0]), reason=reason)
        return reason

    def _renew(self) -> None:
        """A master that has become a replica stays connected: only a new connection finds who is master now."""
        now = asyncio.get_running_loop().time()
        if now - self._renewed_at >= _RENEW_S:
            self._renewed_at = now
            self._wire.give_up("it has become a replica")

    def _told(self, answered: bool, reason: str) -> None:
        if answered:
            self.breaker.succeeded()
        else:
            self.breaker.failed()
        if not answered and not self._away:
            self._logger.warning("redis is away", reason=reason)
        elif self._away and answered:
            self._logger.info("redis is back")
        self._away = not answered
        self.trouble = "" if answered else reason


def _ignored(reply: "asyncio.Future[Reply]") -> None:
    if not reply.cancelled():
        reply.exception()
