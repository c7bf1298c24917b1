"""One of the services as a process of its own: started, found healthy, ended, killed, started again."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

import grpc
from grpc_health.v1 import health_pb2

from twofold_chassis.start import StartError
from twofold_cli.embedded.child import Child
from twofold_cli.embedded.ports import ANYWHERE, Place, is_free

PORT_ATTEMPTS = 3
POLL_S = 0.05
CHECK_S = 2.0
# A service that is just starting has no calls under way.
END_S = 15.0
SERVING = health_pb2.HealthCheckResponse.SERVING
# A service that is just starting refuses connections: ask again soon, not after the usual second.
CHANNEL = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]


class ServiceProcess:
    """`environment` is asked at every start, so it may speak of ports that were chosen meanwhile.

    `drain_s` is how long its end may take. `held` are file descriptors it inherits (see `Child.start`).
    Use it from the main thread and from one event loop (see `Child`).
    """

    def __init__(
        self,
        name: str,
        log: Path,
        environment: Callable[[], Mapping[str, str]],
        *,
        place: Place = ANYWHERE,
        folder: Path | None = None,
        held: Sequence[int] = (),
        start_s: float = 20.0,
        drain_s: float = END_S,
    ) -> None:
        self.name = name
        self.place = place
        self.drain_s = drain_s
        # Whether its end had to be forced, so that calls were cut.
        self.cut = False
        self._choose_ports()
        self.child = Child(name, log, death_signal=SIGTERM)
        self._environment = environment
        self._folder = folder
        self._held = held
        self._start_s = start_s

    @property
    def target(self) -> str:
        """Where others on this machine find it."""
        return f"{self.place.reached}:{self.port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.place.reached}:{self.metrics_port}/metrics"

    @property
    def notes(self) -> list[str]:
        """Which usual ports were taken, and what it has instead."""
        wanted = self.place.port.port, self.place.metrics_port.port
        notes = []
        if wanted[0] not in (None, self.port):
            notes.append(f"{wanted[0]} is taken: {self.name} is on {self.port}")
        if wanted[1] not in (None, self.metrics_port):
            notes.append(f"{wanted[1]} is taken: the metrics of {self.name} are on {self.metrics_port}")
        return notes

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def running(self) -> bool:
        return self.child.running

    async def start(self) -> None:
        """SERVING when it returns; StartError with the last lines of its log otherwise. May choose new ports."""
        for _ in range(PORT_ATTEMPTS):
            if await self._started():
                return
            if self.running or self._ports_are_free():
                break
            self._choose_ports()
        await self._fail()

    async def restart(self) -> None:
        """Ends it if it runs, in order, and starts it where it was: others know its ports."""
        await self.terminate()
        if not await self._started():
            await self._fail()

    async def terminate(self) -> None:
        """SIGTERM, upon which it drains; SIGKILL if it takes too long."""
        if self.running:
            self.resume()
            self.cut = await self.child.end((SIGTERM, self.drain_s)) == -SIGKILL

    async def kill(self) -> None:
        """kill -9, as in a crash."""
        if self.running:
            await self.child.end()

    def pause(self) -> None:
        self.child.signal(SIGSTOP)

    def resume(self) -> None:
        self.child.signal(SIGCONT)

    async def died(self) -> int:
        """Returns once it has ended without being told to."""
        return await self.child.died()

    def _choose_ports(self) -> None:
        host = self.place.host
        self.port, self.metrics_port = self.place.port.granted(host), self.place.metrics_port.granted(host)

    def _ports_are_free(self) -> bool:
        return is_free(self.port, self.place.host) and is_free(self.metrics_port, self.place.host)

    async def _started(self) -> bool:
        argv = [sys.executable, "-m", f"twofold_{self.name}"]
        await self.child.start(argv, env=self._environment(), folder=self._folder, held=self._held)
        return await self._serving()

    async def _serving(self) -> bool:
        """Whether it says SERVING in time; False at once when it has ended."""
        deadline = time.monotonic() + self._start_s
        async with grpc.aio.insecure_channel(self.target, options=CHANNEL) as channel:
            while self.running and (left_s := deadline - time.monotonic()) > 0:
                if await _says_serving(channel, min(left_s, CHECK_S)):
                    return True
                await self.child.ended(POLL_S)
        return False

    async def _fail(self) -> None:
        why = f"did not serve within {self._start_s:g} s" if self.running else "ended while it was starting"
        await self.child.end((SIGTERM, END_S))
        raise StartError(f"{self.name} {why}; its log {self.child.log.path} ends:\n{self.child.log.tail()}")


async def _says_serving(channel: grpc.aio.Channel, timeout_s: float) -> bool:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    try:
        answer = await check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    except grpc.aio.AioRpcError:
        return False
    return answer.status == SERVING
