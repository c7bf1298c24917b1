"""While the stack runs: what dies of it is started again where it was, unless that happens too often."""

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable

from twofold_chassis.start import StartError
from twofold_cli.embedded import ServiceProcess
from twofold_cli.embedded.server import EmbeddedServer
from twofold_cli.stack import Stack

DEATHS_MAX = 3
WITHIN_S = 60.0
AGAIN_S = 1.0

Warn = Callable[[str], None]


async def keep_up(stack: Stack, warn: Warn) -> None:
    """Until something cannot be kept up: StartError naming it. Redis alone is given up: that is slower, not gone."""
    parts = [_keep(part, warn) for part in stack.parts if part.name != "Redis"]
    parts += [_while_possible(part, warn) for part in stack.servers if part.name == "Redis"]
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        # A start under way must be over before the stack is brought down.
        await asyncio.wait(tasks)


async def _while_possible(part: EmbeddedServer | ServiceProcess, warn: Warn) -> None:
    try:
        await _keep(part, warn)
    except StartError as error:
        warn(f"the stack goes on without {part.name}: {error}")


async def _keep(part: EmbeddedServer | ServiceProcess, warn: Warn) -> None:
    deaths: deque[float] = deque(maxlen=DEATHS_MAX)
    started = True
    while True:
        how = _end_of(await part.died()) if started else "did not start again"
        now = time.monotonic()
        if len(deaths) == DEATHS_MAX and now - deaths[0] < WITHIN_S:
            often = f"{DEATHS_MAX + 1} times within {WITHIN_S:g} s"
            raise StartError(f"{part.name} {how}, {often}; its log {part.child.log.path} ends:\n{part.child.log.tail()}")
        deaths.append(now)
        warn(f"{part.name} {how}: starting it again")
        started = await _started_again(part)
        if started:
            warn(f"{part.name} is back")


async def _started_again(part: EmbeddedServer | ServiceProcess) -> bool:
    try:
        await (part.restart() if isinstance(part, ServiceProcess) else part.start())
    except StartError:
        # Perhaps only not yet: what is left of a killed Postgres may take a moment to go.
        await asyncio.sleep(AGAIN_S)
        return False
    return True


def _end_of(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
