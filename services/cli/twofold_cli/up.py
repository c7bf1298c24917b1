"""`twofold up`: the stack, left running for people and their tools."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from twofold_cli.environment import person_environment
from twofold_cli.stack import Stack, raise_stack
from twofold_cli.watch import keep_up

# What is right on a developer's machine: agents may live on loopback. An environment that says otherwise wins.
DEVELOPMENT = {"REGISTRY__ALLOW_LOOPBACK_URLS": "true", "ROUTER__ALLOW_LOOPBACK_URLS": "true"}


class _Interrupts:
    """SIGINT or SIGTERM: the first ends the start or the running of the stack in order, the next kills what still drains."""

    def __init__(self, task: "asyncio.Task[Any]") -> None:
        self._task = task
        self.stack: Stack | None = None
        # From now on there is nothing to begin any more, only something to cut short.
        self.ending = False
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._interrupt)

    def _interrupt(self) -> None:
        if not self.ending:
            self.ending = True
            self._task.cancel()
            return
        for service in self.stack.services if self.stack is not None else ():
            service.child.signal(signal.SIGKILL)


async def up(console: Console, *, folder: Path | None, ephemeral: bool) -> int:
    """Returns the exit status when told to stop by SIGINT or SIGTERM: 1 if a service had to be killed.

    Raises StartError if the stack cannot be started or kept up.
    """
    task = asyncio.current_task()
    assert task is not None
    interrupts = _Interrupts(task)
    settings = {name: value for name, value in DEVELOPMENT.items() if name not in person_environment()}

    def say(text: str) -> None:
        console.print(f"  {text}", style="dim", markup=False)

    def warn(text: str) -> None:
        console.print(f"[bold yellow]note[/] {escape(text)}")

    try:
        async with raise_stack(folder, ephemeral=ephemeral, settings=settings, say=say, warn=warn) as stack:
            interrupts.stack = stack
            _tell(console, stack, warn)
            try:
                await keep_up(stack, warn)
            finally:
                interrupts.ending = True
                console.print("draining … (Ctrl-C again ends it at once)")
    except asyncio.CancelledError:
        if not interrupts.ending:
            raise
        task.uncancel()
    console.print("stopped")
    return int(interrupts.stack is not None and any(service.cut for service in interrupts.stack.services))


def _tell(console: Console, stack: Stack, warn: Callable[[str], None]) -> None:
    for note in stack.notes:
        warn(note)
    console.print()
    for service in stack.services:
        console.print(f"  [bold]{service.name:<9}[/] {service.target}   metrics {service.metrics_url}")
    console.print("\nA first call, to copy:\n")
    body = '{"workspace": {"workspace_id": "acme", "display_name": "Acme"}}'
    call = "twofold.registry.v1.WorkspaceService/CreateWorkspace"
    console.print(f"  grpcurl -plaintext -d '{body}' \\\n    {stack.registry.target} {call}", markup=False, highlight=False)
    console.print(f"\nCtrl-C stops everything. Data is in {stack.folder}, logs are in {stack.folder / 'logs'}", markup=False)
