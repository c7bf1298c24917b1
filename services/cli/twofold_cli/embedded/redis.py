"""A real Redis (Valkey) of our own: loopback only, password on, append-only file, gone when we are gone."""

import secrets
from signal import SIGKILL, SIGTERM
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from twofold_cli.embedded.binaries import Binaries, find_redis
from twofold_cli.embedded.server import EmbeddedServer

# The password stands here and not among the arguments, where everybody on the machine could read it. It runs in its
# data folder, whose name may hold anything: here it would have to be quoted.
CONFIGURATION = """\
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir ./
save ""
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
daemonize no
"""


class EmbeddedRedis(EmbeddedServer):
    name = "Redis"
    # Ends a stopped process as well; what it costs is what a crash may cost, the last second.
    death_signal = SIGKILL
    shutdown = ((SIGTERM, 5.0),)

    @property
    def password(self) -> str:
        password: str = self._state["password"]
        return password

    def _find(self) -> Binaries:
        return find_redis()

    def _remembered(self) -> dict[str, Any]:
        state = self.folder.read_state()
        if not state:
            state = {"password": secrets.token_hex(24)}
            self.folder.write_state(state)
        return state

    async def _make_data(self, binaries: Binaries) -> None:
        self.folder.make_data()

    def _argv(self, binaries: Binaries, port: int) -> list[str]:
        text = CONFIGURATION.format(host=self.host, port=port, password=self.password)
        path = self.folder.write_secret("redis.conf", text)
        self.folder.give(path)
        return [binaries.server, str(path)]

    async def _answers(self, port: int, timeout_s: float) -> bool:
        connection = Redis(
            host=self.host,
            port=port,
            password=self.password,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        async with connection:
            try:
                await connection.ping()
            except (RedisError, OSError):
                # Not listening yet, or still reading its file.
                return False
        return True
