"""The demo's agent as a process of its own, that ends with us."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from signal import SIGTERM

import aiohttp

from twofold_chassis.start import StartError
from twofold_cli.embedded.child import Child
from twofold_cli.embedded.ports import LOOPBACK, free_port
from twofold_cli.stack import Stack

_START_S = 10.0
_POLL_S = 0.05


@asynccontextmanager
async def agent_process(stack: Stack) -> AsyncIterator[str]:
    """The URL of a real agent, for as long as the block runs. Raises StartError."""
    child = Child("agent", stack.folder / "logs" / "agent.log", death_signal=SIGTERM)
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    try:
        await child.start([sys.executable, "-m", "twofold_cli.demo_agent", "--port", str(port)], env=stack.environment)
        if not await _answers(url, child):
            raise StartError(f"the demo agent did not start; its log ends:\n{child.log.tail()}")
        yield url
    finally:
        await child.end((SIGTERM, 5.0))


async def _answers(url: str, child: Child) -> bool:
    deadline = time.monotonic() + _START_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        while child.running and time.monotonic() < deadline:
            try:
                async with session.get(f"{url}/health") as response:
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(_POLL_S)
    return False
