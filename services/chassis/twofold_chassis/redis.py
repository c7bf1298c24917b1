"""Redis for a room: one link that keeps to a budget of time, and never retries blindly.

Everything in Redis may be lost, so there is one error, RedisUnavailable, and one way to live with it, `losable`. That it is
away is told to operators once, in the log, with the reason that a wrong password or address needs.
"""

import hashlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TypeVar

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)

from twofold_chassis.breaker import Breaker
from twofold_chassis.redis_wire import Argument, RedisUnavailable, RedisWire, Reply
from twofold_chassis.settings import RedisSettings

__all__ = ["Argument", "RedisLink", "RedisUnavailable", "Reply", "Script", "losable"]

Value = TypeVar("Value")
Otherwise = TypeVar("Otherwise")

_CONNECT_S = 1.0
# A server that is loading, read-only, out of memory or without its cluster answers, but cannot serve: as good as gone.
_CANNOT_SERVE = (BusyLoadingError, ReadOnlyError, OutOfMemoryError, ClusterDownError, MasterDownError)
_CANNOT_SERVE_WORDS = ("MISCONF", "BUSY", "NOAUTH")  # those that the library has no class for


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: one operation, whose header in its file is its contract."""

    name: str
    source: str
    sha: str

    @classmethod
    def load(cls, package: str, name: str) -> "Script":
        """The script `name`.lua of a package."""
        source = (resources.files(package) / f"{name}.lua").read_text(encoding="utf-8")
        return cls(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class RedisLink:
    """The way to one Redis (or Valkey).

    Commands of concurrent callers share round trips. A timed-out write is not repeated: it may have been executed, and only
    who sent it knows whether twice is harmless.
    """

    def __init__(self, settings: RedisSettings) -> None:
        self.budget_s = settings.budget_ms / 1000
        self.breaker = Breaker()
        self._away = False
        self._logger = structlog.get_logger("twofold.redis")
        password = settings.password.get_secret_value() if settings.password else None
        # Only the settings of connections are the pool's: it is asked for a new one, never for a free one.
        self._pool = redis.asyncio.ConnectionPool(
            host=settings.host,
            port=settings.port,
            db=settings.db,
            username=settings.username,
            password=password,
            socket_timeout=_CONNECT_S,
            socket_connect_timeout=_CONNECT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            connection_class=redis.asyncio.SSLConnection if settings.tls else redis.asyncio.Connection,
        )
        self._wire = RedisWire(self._pool.make_connection, budget_s=self.budget_s, told=self._told)

    async def call(self, *command: Argument) -> Reply:
        """One command. Raises RedisUnavailable."""
        if not self.breaker.admits():
            raise RedisUnavailable("not asked: it did not answer before")
        try:
            return await self._wire.send(command)
        except NoScriptError:
            raise
        except RedisError as error:
            reason = str(error)[:200]
            if not (isinstance(error, _CANNOT_SERVE) or reason.startswith(_CANNOT_SERVE_WORDS)):
                # A key of another type, a missing right, a script that fails: somebody must look, nobody shall suffer.
                self._logger.error("redis refused a command", command=str(command[0]), reason=reason)
            raise RedisUnavailable(reason) from None

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
        """Runs a script by its hash; sends its text if the server does not know it (then nothing has run yet)."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self.call("EVAL", script.source, len(keys), *keys, *arguments)

    async def answers(self) -> bool:
        """Whether Redis answers now."""
        try:
            return bool(await self.call("PING"))
        except RedisUnavailable:
            return False

    @property
    def generation(self) -> int:
        """A number of the connection that is there now, and another one while there is none.

        Behind a new connection may be another server, or an older state.
        """
        return self._wire.generation

    async def close(self) -> None:
        """Waits for what is under way and closes the connection."""
        await self._wire.close()

    def _told(self, answered: bool, reason: str) -> None:
        if answered:
            self.breaker.succeeded()
        else:
            self.breaker.failed()
        self._tell(away=not answered, reason=reason)

    def _tell(self, *, away: bool, reason: str = "") -> None:
        if away and not self._away:
            self._logger.warning("redis is away", reason=reason)
        elif self._away and not away:
            self._logger.info("redis is back")
        self._away = away


async def losable(answer: Awaitable[Value], otherwise: Otherwise) -> Value | Otherwise:
    """The answer, or `otherwise` when Redis is not there: for what can be had from its owner instead."""
    try:
        return await answer
    except RedisUnavailable:
        return otherwise
