"""What the operating system says about processes that are not ours to wait for: a server's own children."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


def _stat_fields(pid: int) -> list[str] | None:
    """From the state on; the name before it stands in parentheses and may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _parents() -> Iterable[tuple[int, int]]:
    if sys.platform == "linux":
        for entry in os.listdir("/proc"):
            fields = _stat_fields(int(entry)) if entry.isdigit() else None
            if fields is not None:
                yield int(entry), int(fields[1])
        return
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    for line in listing.stdout.splitlines():
        pid, parent = line.split()
        yield int(pid), int(parent)


def children_of(parent: int) -> list[int]:
    return [pid for pid, its_parent in _parents() if its_parent == parent]


def is_alive(pid: int) -> bool:
    """A zombie is not: it holds nothing any more, and who must reap it is not always quick."""
    if sys.platform == "linux":
        fields = _stat_fields(pid)
        return fields is not None and fields[0] not in ("Z", "X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def command_line(pid: int) -> str:
    """Empty where the process is gone or the system does not tell."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    listing = subprocess.run(
        ["ps", "-p", str(pid), "-o", "command="],
        capture_output=True,
        text=True,
        check=False,
    )
    return listing.stdout


async def until(condition: Callable[[], bool], within_s: float) -> bool:
    """Whether it came true in time. Only for what the system announces to nobody."""
    try:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
    except TimeoutError:
        return condition()
    return True
