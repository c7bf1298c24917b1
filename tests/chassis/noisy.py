"""A service in whose process everything goes wrong that can: a process of its own, for the tests of what it writes."""

import asyncio
import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry

from tests.chassis.serving import NAME, Service, add, well
from twofold_chassis import server
from twofold_chassis.server import Face, Running
from twofold_chassis.settings import ListenSettings, ServiceSettings

SECRET = "hu" + "sh"  # so that the line of source in a traceback does not show it


class _Unruly:
    def __del__(self) -> None:
        raise OSError(SECRET)


async def _noise() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError:
        logging.getLogger("asyncpg.pool").warning("%s\n%s", SECRET, SECRET, exc_info=True)
    warnings.warn(SECRET, stacklevel=1)

    async def fail() -> None:
        raise ValueError(SECRET)

    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task
    thread = threading.Thread(target=lambda: int(SECRET))
    thread.start()
    thread.join()
    _Unruly()


@contextlib.asynccontextmanager
async def noisy(settings: ServiceSettings) -> AsyncIterator[Running]:
    listen = ListenSettings(drain_s=0)
    faces = [Face(NAME, Service(), add)]
    async with server.serving(listen, settings.log, faces=faces, check=well, metrics=CollectorRegistry()) as running:
        await _noise()
        yield running
        if "fail" in sys.argv:
            raise RuntimeError(SECRET)


if __name__ == "__main__":
    server.main(ServiceSettings, noisy, service="noisy")
