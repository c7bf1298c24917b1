"""`twofold up`: the stack, left running for people and their tools."""

import asyncio
import signal
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from twofold_cli.stack import Stack, person_environment, raise_stack

# What is right on a developer's machine: agents may live on loopback. An environment that says otherwise wins.
DEVELOPMENT = {"REGISTRY__ALLOW_LOOPBACK_URLS": "true"}


async def up(console: Console, *, folder: Path | None, ephemeral: bool) -> None:
    """Returns when told to stop by SIGINT or SIGTERM; raises StartError if a part of the stack ends by itself."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    settings = {name: value for name, value in DEVELOPMENT.items() if name not in person_environment()}

    def say(text: str) -> None:
        console.print(f"  {escape(text)}", style="dim")

    async with raise_stack(folder, ephemeral=ephemeral, settings=settings, say=say) as stack:
        _tell(console, stack)
        stopped, ended = asyncio.create_task(stop.wait()), asyncio.create_task(stack.wait())
        await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if ended.done():
            ended.result()  # raises, naming what ended
        ended.cancel()
        console.print("draining …")
    console.print("stopped")


def _tell(console: Console, stack: Stack) -> None:
    for note in stack.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    console.print()
    for service in stack.services:
        metrics = f"http://127.0.0.1:{service.metrics_port}/metrics"
        console.print(f"  [bold]{service.name:<9}[/] {service.target}   metrics {metrics}")
    console.print(f"  data and logs in {escape(str(stack.folder))}")
    console.print("\nA first call, to copy:\n")
    body = '{"workspace": {"workspace_id": "acme", "display_name": "Acme"}}'
    call = "twofold.registry.v1.WorkspaceService/CreateWorkspace"
    console.print(f"  grpcurl -plaintext -d '{body}' \\\n    {stack.registry.target} {call}", markup=False, highlight=False)
    console.print("\nCtrl-C stops everything.")
