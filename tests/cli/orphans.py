"""Raises both servers, prints their process numbers, waits to be killed: `orphans.py FOLDER [paused]`."""

import asyncio
import sys
from pathlib import Path

from twofold_cli.embedded import EmbeddedPostgres, EmbeddedRedis
from twofold_cli.embedded.processes import children_of


async def main() -> None:
    folder = Path(sys.argv[1])
    postgres, redis = EmbeddedPostgres(folder / "postgres"), EmbeddedRedis(folder / "redis")
    await postgres.start()
    await redis.start()
    print(postgres.pid, redis.pid, *children_of(postgres.pid), flush=True)
    if "paused" in sys.argv:
        postgres.pause()
        redis.pause()
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
