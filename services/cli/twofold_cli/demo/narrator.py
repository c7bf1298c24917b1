"""What a person sees of a demo: each step a line, with what it took and what it is worth."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text


class Narrator:
    """Prints steps; colour on a terminal, plain in a pipe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.failures = 0

    def title(self, text: str) -> None:
        """A heading."""
        self.console.print(Text(text, style="bold"))

    def step(self, name: str, text: str, detail: str = "", *, style: str = "cyan") -> None:
        """One line: what it is, what happened, and in small what it took."""
        line = Text.assemble((f"{name:<12} ", style), text)
        if detail:
            line.append(f"  {detail}", style="dim")
        self.console.print(line)

    def warn(self, text: str) -> None:
        """What a person should not miss."""
        self.step("note", text, style="bold yellow")

    def check(self, name: str, holds: bool, text: str) -> None:
        """One line that says whether something is as it must be; a failure makes the demo's exit status 1."""
        if not holds:
            self.failures += 1
        self.step(name, f"{'✔' if holds else '✘'} {text}", style="green" if holds else "bold red")

    @contextmanager
    def timed(self, name: str, text: str) -> Iterator[list[str]]:
        """Does something, then prints its line; what is put into the list stands behind the time."""
        details: list[str] = []
        began = time.perf_counter()
        yield details
        self.step(name, text, " · ".join([took(time.perf_counter() - began), *details]))


def took(seconds: float) -> str:
    """A time for people."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
