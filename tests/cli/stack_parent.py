"""Raises a stack, prints its folder and process numbers and waits to be killed."""

import asyncio
import signal

from twofold_cli.embedded.processes import children_of
from twofold_cli.stack import bare_environment, raise_stack


async def main() -> None:
    async with raise_stack(ephemeral=True, environment=bare_environment()) as stack:
        parts = [part.pid for part in stack.parts]
        print(stack.folder, *parts, *children_of(stack.postgres.pid), flush=True)
        await asyncio.Event().wait()


# A shell lets its background jobs, and so the tests that run in one, ignore Ctrl-C: a terminal does not.
signal.signal(signal.SIGINT, signal.default_int_handler)
asyncio.run(main())
