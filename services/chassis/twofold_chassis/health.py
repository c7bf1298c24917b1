"""Health that means something: per service, and NOT_SERVING while it drains or cannot do its job."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from twofold_chassis.alongside import alongside

Check = Callable[[], Awaitable[bool]]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_PERIOD_S = 1.0
_CHECK_S = 2.0


class Health:
    """The standard health service of one process. The empty name stands for all of its services together."""

    def __init__(self, services: Sequence[str], *, own: Mapping[str, Callable[[], bool]] | None = None) -> None:
        """`own` says of single services whether they can do theirs: the name of such a one tells, the empty one does not."""
        self.servicer = health_aio.HealthServicer()
        self._names = ("", *services)
        self._own = own or {}
        self._draining = False

    async def set_serving(self, serving: bool) -> None:
        """Says whether the services can do their job; without effect once they drain."""
        if not self._draining:
            for name in self._names:
                own = self._own.get(name)
                await self.servicer.set(name, _SERVING if serving and (own is None or own()) else _NOT_SERVING)

    async def drain(self) -> None:
        """NOT_SERVING from now on, for good."""
        self._draining = True
        await self.servicer.enter_graceful_shutdown()

    @contextlib.asynccontextmanager
    async def watching(self, check: Check) -> AsyncIterator[None]:
        """Asks `check` now and then once a second, and says what it says; a check that takes too long counts as no."""
        await self.set_serving(await _within(check))
        async with alongside(self._watch(check)):
            yield

    async def _watch(self, check: Check) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self.set_serving(await _within(check))


async def _within(check: Check) -> bool:
    try:
        async with asyncio.timeout(_CHECK_S):
            return await check()
    except TimeoutError:
        return False
