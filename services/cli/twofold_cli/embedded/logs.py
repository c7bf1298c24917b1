"""The log file of a child: bounded by turning it over at a start, its last lines quoted in a failure."""

from pathlib import Path
from typing import BinaryIO

LOG_BYTES_MAX = 4 * 1024 * 1024
TAIL_BYTES = 8 * 1024


class Log:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = 0

    def opened(self) -> BinaryIO:
        """For appending; one older file is kept beside it."""
        if self.path.exists() and self.path.stat().st_size > LOG_BYTES_MAX:
            self.path.replace(self.path.with_name(self.path.name + ".1"))
        output = self.path.open("ab")
        self.path.chmod(0o600)
        self._start = output.tell()
        return output

    def tail(self, lines_max: int = 10) -> str:
        """The last lines since the latest start, each indented; says so where there are none."""
        if not self.path.exists():
            return f"(no log at {self.path})"
        with self.path.open("rb") as source:
            end = source.seek(0, 2)
            source.seek(max(self._start, end - TAIL_BYTES))
            text = source.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()][-lines_max:]
        return "\n".join(f"  {line}" for line in lines) or f"  ({self.path} is empty)"
