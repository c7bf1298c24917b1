"""Redis as it runs where one server is not enough: a master with replicas and sentinels, or a cluster."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.waiting import until
from twofold_chassis.settings import RedisSettings
from twofold_cli.embedded.binaries import Binaries
from twofold_cli.embedded.ports import free_port
from twofold_cli.embedded.redis import CONFIGURATION, EmbeddedRedis

PASSWORD = "one-for-all"
SENTINEL_PASSWORD = "for-sentinels"
MASTER = "main"
SLOTS = 16384

_REPLICA = """\
masterauth {password}
repl-diskless-sync-delay 0
repl-ping-replica-period 1
"""
_CLUSTER = """\
cluster-enabled yes
cluster-node-timeout {timeout_ms}
cluster-announce-ip {host}
cluster-port {bus_port}
"""
_SENTINEL = """\
bind {host}
port {port}
requirepass {password}
dir ./
sentinel monitor {master} {host} {master_port} 1
sentinel auth-pass {master} {master_password}
sentinel down-after-milliseconds {master} 300
sentinel failover-timeout {master} 2000
"""


class Server(EmbeddedRedis):
    """A Redis with further lines in its configuration, and a password that is known to all of them."""

    def __init__(self, folder: Path, lines: str = "", *, password: str = PASSWORD) -> None:
        super().__init__(folder)
        self._lines = lines
        self._password = password

    def _remembered(self) -> dict[str, Any]:
        return super()._remembered() | {"password": self._password}

    def _argv(self, binaries: Binaries, port: int) -> list[str]:
        text = CONFIGURATION.format(host=self.host, port=port, password=self._password)
        return [binaries.server, self._written(text + self._lines)]

    def _written(self, text: str) -> str:
        """Among the data, as sentinels write their own file anew."""
        path = self.folder.data / "redis.conf"
        path.write_text(text)
        path.chmod(0o600)
        self.folder.give(path)
        return str(path)

    async def asked(self, *command: str | int) -> Any:
        """The reply to one command, as its administrator gets it."""
        async with Redis(
            host=self.host, port=self.port, password=self.password, retry=Retry(NoBackoff(), 0), protocol=2
        ) as client:
            client.response_callbacks.clear()  # as it is, not as the library likes to show it
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]


class Sentinel(Server):
    """A sentinel of `master`."""

    def __init__(self, folder: Path, master: Server) -> None:
        super().__init__(folder, password=SENTINEL_PASSWORD)
        self._master = master

    def _argv(self, binaries: Binaries, port: int) -> list[str]:
        text = _SENTINEL.format(
            host=self.host,
            port=port,
            password=self._password,
            master=MASTER,
            master_port=self._master.port,
            master_password=self._master.password,
        )
        return [binaries.server, self._written(text), "--sentinel"]


def settings_of(server: EmbeddedRedis, **others: object) -> RedisSettings:
    """The settings of a service that uses this server. The machine is busy: the budget is generous."""
    own = {"host": server.host, "port": server.port, "password": SecretStr(server.password), "budget_ms": 5000}
    return RedisSettings.model_validate(own | others)


@contextlib.asynccontextmanager
async def running(*servers: Server) -> AsyncIterator[None]:
    """Starts the servers; stops them at the end, however many are still there."""
    try:
        for server in servers:
            await server.start()
        yield
    finally:
        for server in servers:
            await server.kill()


@contextlib.asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[tuple[Server, Server, Sentinel]]:
    """A master, its replica, and a sentinel that knows of both."""
    replication = _REPLICA.format(password=PASSWORD)
    master, replica = (Server(folder / name, replication) for name in ("master", "replica"))
    sentinel = Sentinel(folder / "sentinel", master)
    async with running(master, replica):
        await replica.asked("REPLICAOF", master.host, master.port)

        async def follows() -> bool:
            return b"master_link_status:up" in await replica.asked("INFO", "replication")

        async def known() -> bool:
            found: Sequence[list[bytes]] = await sentinel.asked("SENTINEL", "REPLICAS", MASTER)
            fields = [dict(zip(one[::2], one[1::2], strict=True)) for one in found]
            return [one[b"master-link-status"] for one in fields] == [b"ok"]

        await until(follows)
        async with running(sentinel):
            await until(known)
            yield master, replica, sentinel


@contextlib.asynccontextmanager
async def cluster(folder: Path, *, replicas: int = 0, timeout_ms: int = 2000) -> AsyncIterator[list[Server]]:
    """Three masters that share the slots equally, and `replicas` replicas of the first: in this order."""
    # Else it is the port and 10,000, out of the range from which the kernel serves outgoing connections.
    buses = [free_port() for _ in range(3 + replicas)]
    nodes = [
        Server(
            folder / f"node-{number}",
            _CLUSTER.format(host=Server.host, timeout_ms=timeout_ms, bus_port=bus) + _REPLICA.format(password=PASSWORD),
        )
        for number, bus in enumerate(buses)
    ]
    async with running(*nodes):
        for number, node in enumerate(nodes[:3]):
            await node.asked("CLUSTER", "ADDSLOTSRANGE", SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1)
            await node.asked("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node, bus in zip(nodes[1:], buses[1:], strict=True):
            await nodes[0].asked("CLUSTER", "MEET", node.host, node.port, bus)

        async def all_know_all() -> bool:
            views = [await node.asked("CLUSTER", "NODES") for node in nodes]
            return all(view.count(b"connected\n") + view.count(b" connected ") == len(nodes) for view in views)

        await until(all_know_all)
        first = (await nodes[0].asked("CLUSTER", "MYID")).decode()
        for node in nodes[3:]:
            await node.asked("CLUSTER", "REPLICATE", first)

        async def serves() -> bool:
            states = [await node.asked("CLUSTER", "INFO") for node in nodes]
            links = [await node.asked("INFO", "replication") for node in nodes[3:]]
            return all(b"cluster_state:ok" in state for state in states) and all(
                b"master_link_status:up" in link for link in links
            )

        await until(serves)
        yield nodes
