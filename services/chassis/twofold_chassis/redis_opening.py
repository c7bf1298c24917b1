"""How a connection to Redis is opened: where it is, and whether what is found there is what this service was set up for."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from twofold_chassis.redis_wire import Argument, Reply
from twofold_chassis.settings import RedisSettings

Address = tuple[str, int]
Places = Callable[[], Awaitable[Sequence[Address]]]

_CONNECT_S = 1.0
_OPEN_S = 3.0


class UnfitRedis(RedisError):  # noqa: N818  (a state, not an error of ours)
    """It answers, and must not be used as it, or this service, is set up. The text says what to do."""


@dataclass(frozen=True, slots=True)
class About:
    """What a server says of itself, in INFO. `policy` and `run_id` are empty where it does not say.

    `run_id` is of the process: another one after a restart, and at each of its replicas.
    """

    address: Address
    is_master: bool
    is_cluster: bool
    policy: str
    run_id: str = ""

    @property
    def keeps(self) -> bool:
        """Whether what has no TTL stays until it is deleted. No maxmemory is no excuse: it can be set at any time."""
        return self.policy == "noeviction" or self.policy.startswith("volatile-")

    @property
    def danger(self) -> str:
        """In one sentence, what is wrong with a server that does not keep, and what to do."""
        policy = f"its maxmemory-policy is {self.policy}" if self.policy else "INFO does not tell its maxmemory-policy"
        return (
            f"Redis at {said(self.address)} may drop what has no other copy: {policy}, which counts even while no maxmemory "
            "is set; set it to noeviction or to a volatile-* policy, or set REDIS__ALLOW_EVICTION=true to go on with "
            "answers that are marked WEAK"
        )


def said(address: Address) -> str:
    """An address, for people."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def at(address: Address) -> Places:
    """One place that never changes."""

    async def places() -> Sequence[Address]:
        return [address]

    return places


class Opening:
    """Opens connections to what is at one of `places`: the first that is reached and serves.

    A replica is passed over with `masters_only`, where somebody knows of a better one.
    """

    def __init__(
        self, settings: RedisSettings, places: Places, *, masters_only: bool = False, in_cluster: bool = False
    ) -> None:
        self._settings = settings
        self._places = places
        self._masters_only = masters_only
        self._in_cluster = in_cluster
        password = settings.password.get_secret_value() if settings.password else None
        self._identity: dict[str, Any] = {"db": settings.db, "username": settings.username, "password": password}

    async def open(self) -> tuple[AbstractConnection, About]:
        """An open connection, and what is at its other end. Raises UnfitRedis, RedisError, OSError, TimeoutError."""
        trouble: Exception = RedisError("nobody knows where it is")
        async with asyncio.timeout(_OPEN_S):
            for address in await self._places():
                connection = connection_to(address, self._settings, **self._identity)
                try:
                    return connection, await self._greeted(connection, address)
                except UnfitRedis:
                    raise
                except (RedisError, OSError, TimeoutError) as error:
                    trouble = error
        raise trouble

    async def _greeted(self, connection: AbstractConnection, address: Address) -> About:
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            about = await _about(connection, address, self._in_cluster)
            self._check(about)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return about

    def _check(self, about: About) -> None:
        if about.is_cluster and not self._in_cluster:
            raise UnfitRedis(f"Redis at {said(about.address)} is a cluster: set REDIS__CLUSTER=true")
        if self._in_cluster and not about.is_cluster:
            raise UnfitRedis(f"Redis at {said(about.address)} is not a cluster: unset REDIS__CLUSTER")
        if self._masters_only and not about.is_master:
            raise RedisError(f"{said(about.address)} is a replica")


def connection_to(address: Address, settings: RedisSettings, **identity: Any) -> AbstractConnection:
    """A connection that is not open yet; `identity` says as whom."""
    kind = redis.asyncio.SSLConnection if settings.tls else redis.asyncio.Connection
    return kind(
        host=address[0],
        port=address[1],
        socket_timeout=_CONNECT_S,
        socket_connect_timeout=_CONNECT_S,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        **identity,
    )


async def asked(connection: AbstractConnection, *command: Argument) -> Reply:
    """The reply to one command on a connection that nobody else uses."""
    await connection.send_command(*command)
    return await connection.read_response(disable_decoding=True)


async def _about(connection: AbstractConnection, address: Address, cluster: bool) -> About:
    try:
        info: bytes = await asked(connection, "INFO")
    except ResponseError as error:
        if not isinstance(error, NoPermissionError) and not str(error).startswith("unknown command"):
            raise
        # It does not tell this user: then, but for what it keeps, it counts as what it should be.
        return About(address, is_master=True, is_cluster=cluster, policy="")
    fields = dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
    mode = fields.get("redis_mode") or fields.get("server_mode")  # Redis, Valkey
    return About(
        address,
        is_master=fields.get("role") != "slave",
        is_cluster=mode == "cluster",
        policy=fields.get("maxmemory_policy", ""),
        run_id=fields.get("run_id", ""),
    )
