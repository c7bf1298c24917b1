"""Work that goes on beside something else, and ends with it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any


@contextlib.asynccontextmanager
async def alongside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs the work in a task of its own until the block ends, and then waits until it has ended. Raises what it raised."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        # Not by awaiting the task: its cancellation could not be told from one of whoever waits here.
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
