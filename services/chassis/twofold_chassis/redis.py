"""Redis for a room: one link that keeps to a budget of time, and never retries blindly.

Everything in Redis may be lost, so there is one error, RedisUnavailable, and one way to live with it, `losable`. That it is
away is told to operators once, in the log, with the reason that a wrong password or address needs.
"""

import hashlib
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol, TypeVar

import structlog
from redis.exceptions import NoScriptError

from twofold_chassis.breaker import Opens
from twofold_chassis.redis_cluster import RedisCluster
from twofold_chassis.redis_opening import About, Opening, UnfitRedis, at
from twofold_chassis.redis_sentinel import masters
from twofold_chassis.redis_server import RedisServer
from twofold_chassis.redis_wire import Argument, RedisNotAsked, RedisUnavailable, Reply
from twofold_chassis.settings import RedisSettings
from twofold_chassis.start import StartError

__all__ = ["RUN_ID", "Argument", "RedisLink", "RedisNotAsked", "RedisUnavailable", "Reply", "Script", "losable", "open_link"]

RUN_ID = "\0run_id"
"""As the first argument of a script: the run_id of the process that runs it, empty where it does not tell. Another one says
that a key was written before a restart or a failover: what is there may be older than what was there."""

Value = TypeVar("Value")
Otherwise = TypeVar("Otherwise")


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


class _Servers(Protocol):
    """What is behind a link."""

    @property
    def breaker(self) -> Opens: ...

    @property
    def weak(self) -> bool: ...

    @property
    def trouble(self) -> str: ...

    @property
    def generation(self) -> int: ...

    def call(self, command: Sequence[Argument], *, run_id_at: int = 0) -> Coroutine[Any, Any, Reply]: ...

    async def look(self) -> list[About]: ...

    async def close(self) -> None: ...


class RedisLink:
    """The way to Redis (or Valkey): one server, the master that sentinels name, or a cluster.

    Commands of concurrent callers share round trips. A timed-out write is not repeated: it may have been executed, and only
    who sent it knows whether twice is harmless. With `must_keep`, what has no TTL must not be evicted there.
    """

    def __init__(self, settings: RedisSettings, *, must_keep: bool = False) -> None:
        self.budget_s = settings.budget_ms / 1000
        self._must_keep = must_keep
        self._may_evict = settings.allow_eviction
        self._warned = False
        self._logger = structlog.get_logger("twofold.redis")
        self._servers = _servers(settings, self)

    def call(self, *command: Argument) -> Coroutine[Any, Any, Reply]:
        """One command. Raises RedisUnavailable. In a cluster, one without a key goes to every master (redis_cluster.py)."""
        return self._servers.call(command)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Reply:
        """Runs a script by its hash; sends its text if the server does not know it (then nothing has run yet).

        Its keys must share a hash tag. If its first argument is RUN_ID, it gets the run_id of the process that runs it.
        """
        run_id_at = 3 + len(keys) if arguments and arguments[0] is RUN_ID else 0
        try:
            return await self._servers.call(("EVALSHA", script.sha, len(keys), *keys, *arguments), run_id_at=run_id_at)
        except NoScriptError:
            return await self._servers.call(("EVAL", script.source, len(keys), *keys, *arguments), run_id_at=run_id_at)

    async def answers(self) -> bool:
        """Whether Redis answers now; of a cluster, every master."""
        try:
            return bool(await self.call("PING"))
        except RedisUnavailable:
            return False

    async def check(self) -> None:
        """Raises StartError if what answers there must not be used. Whether anything does is not its question."""
        try:
            found = await self._servers.look()
        except UnfitRedis as error:
            raise StartError(str(error)) from None
        for about in found:
            if self._must_keep and not self._may_evict and not about.keeps:
                raise StartError(about.danger)

    @property
    def weak(self) -> bool:
        """Whether a server that is, or was last, connected may drop what shall stay."""
        return self._servers.weak

    @property
    def breaker(self) -> Opens:
        """Open while Redis is believed to be gone."""
        return self._servers.breaker

    @property
    def trouble(self) -> str:
        """Why Redis did not answer when it was asked last; empty if it did."""
        return self._servers.trouble

    @property
    def generation(self) -> int:
        """A number of the connection (of a cluster: of all) that is there now, and another one while there is none.

        Behind a new connection may be another server, or an older state.
        """
        return self._servers.generation

    async def close(self) -> None:
        """Waits for what is under way and closes all connections."""
        await self._servers.close()

    def met(self, about: About) -> None:
        """A new connection leads to this server. A service that runs goes on, whatever it is."""
        if self._must_keep and not about.keeps and not self._warned:
            self._warned = True
            tell = self._logger.warning if self._may_evict else self._logger.error
            tell("redis may evict what must stay", reason=about.danger)


async def open_link(settings: RedisSettings, *, must_keep: bool = False) -> RedisLink:
    """The link of a room. Raises StartError if Redis answers and must not be used; that it is away stops nobody.

    `must_keep` says that the room keeps something there that no other store has for a while.
    """
    link = RedisLink(settings, must_keep=must_keep)
    try:
        await link.check()
    except StartError:
        await link.close()
        raise
    return link


def _servers(settings: RedisSettings, link: RedisLink) -> _Servers:
    if settings.cluster:
        return RedisCluster(settings, link.met)
    places = masters(settings) if settings.sentinels else at((settings.host, settings.port))
    opening = Opening(settings, places, masters_only=bool(settings.sentinels))
    return RedisServer(opening, link.met, budget_s=link.budget_s)


async def losable(answer: Awaitable[Value], otherwise: Otherwise) -> Value | Otherwise:
    """The answer, or `otherwise` when Redis is not there: for what can be had from its owner instead."""
    try:
        return await answer
    except RedisUnavailable:
        return otherwise
