"""Redis for a room: one link that gathers commands into pipelines, keeps to a budget of time, and never retries blindly.

Everything in Redis may be lost, so there is one error, RedisUnavailable, and one way to live with it, `losable`. That it is
away is told to operators once, in the log, with the reason that a wrong password or address needs.
"""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from twofold_chassis.breaker import Breaker
from twofold_chassis.gathering import Gathering
from twofold_chassis.refusals import Overloaded
from twofold_chassis.settings import RedisSettings

Argument = str | bytes | int | float
Reply = Any  # what a command returns: bytes, int, None or a list of these
Value = TypeVar("Value")
Otherwise = TypeVar("Otherwise")

_LANES = 1
_BATCH_MAX = 128
_WAITING_MAX = 4096
# A server that is loading, read-only, out of memory or without its cluster answers, but cannot serve: as good as gone.
_CANNOT_SERVE = ("LOADING", "READONLY", "OOM", "CLUSTERDOWN", "MISCONF", "MASTERDOWN", "BUSY", "NOAUTH")


class RedisUnavailable(Exception):  # noqa: N818  (a state, not an error of ours)
    """Redis did not answer within its budget, is believed to be gone, or refused. The command may or may not have run."""


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
        self._pool = redis.asyncio.BlockingConnectionPool(
            host=settings.host,
            port=settings.port,
            db=settings.db,
            username=settings.username,
            password=password,
            max_connections=max(_LANES, settings.connections_max),
            timeout=self.budget_s,
            socket_timeout=max(1.0, 4 * self.budget_s),
            socket_connect_timeout=max(1.0, 4 * self.budget_s),
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            connection_class=redis.asyncio.SSLConnection if settings.tls else redis.asyncio.Connection,
        )
        self._client = redis.asyncio.Redis(connection_pool=self._pool)
        self._gathering: Gathering[Sequence[Argument], Reply] = Gathering(
            self._pipeline, batch_max=_BATCH_MAX, waiting_max=_WAITING_MAX, lanes=_LANES
        )

    async def call(self, *command: Argument) -> Reply:
        """One command. Raises RedisUnavailable."""
        if not self.breaker.admits():
            raise RedisUnavailable("not asked: it did not answer before")
        try:
            async with asyncio.timeout(self.budget_s):
                return await self._gathering.ask(command)
        except Overloaded:
            raise RedisUnavailable("too many commands wait") from None
        except TimeoutError:
            raise RedisUnavailable("no answer within the budget") from None

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

    async def close(self) -> None:
        """Waits for what is under way and closes the connections."""
        await self._gathering.drain()
        await self._client.aclose()
        await self._pool.aclose()

    async def _pipeline(self, commands: Sequence[Sequence[Argument]]) -> Sequence[Reply | BaseException]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            async with asyncio.timeout(self.budget_s):
                replies: list[Reply] = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            self.breaker.failed()
            reason = re.sub(r"\s+", " ", str(error))[:200] or "no answer within the budget"
            self._tell(away=True, reason=reason)
            return [RedisUnavailable(reason) for _ in commands]
        self.breaker.succeeded()
        self._tell(away=False)
        return [self._judged(command, reply) for command, reply in zip(commands, replies, strict=True)]

    def _judged(self, command: Sequence[Argument], reply: Reply) -> Reply | BaseException:
        if not isinstance(reply, RedisError) or isinstance(reply, NoScriptError):
            return reply
        reason = str(reply)[:200]
        if not reason.startswith(_CANNOT_SERVE):
            # A key of another type, a right that is missing, a script that fails: somebody must look, nobody shall suffer.
            self._logger.error("redis refused a command", command=str(command[0]), reason=reason)
        return RedisUnavailable(reason)

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
