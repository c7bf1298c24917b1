"""Raises a stack, prints its folder and process numbers and waits to be killed."""

import asyncio

from twofold_cli.embedded.processes import children_of
from twofold_cli.stack import bare_environment, raise_stack


async def main() -> None:
    async with raise_stack(ephemeral=True, environment=bare_environment()) as stack:
        parts = [part.pid for part in stack.parts]
        print(stack.folder, *parts, *children_of(stack.postgres.pid), flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
