"""What a process writes: one JSON object a line on stdout, nothing on stderr, and no text of errors and libraries."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
async def test_whatever_goes_wrong_in_a_process_is_a_line_of_json_without_its_text(ended_by: signal.Signals) -> None:
    status, lines, error = await run(ended_by)
    assert (status, error) == (0, "")
    entries = [json.loads(line) for line in lines]
    assert all(entry.keys() >= {"timestamp", "service", "level", "event"} for entry in entries)
    assert {
        (entry.get("logger"), entry.get("error"), entry["level"]) for entry in entries if entry["event"] != "serving"
    } == {
        ("asyncpg.pool", "KeyError", "warning"),
        ("py.warnings", None, "warning"),
        ("asyncio", "ValueError", "error"),
        (None, "ValueError", "error"),
        (None, "OSError", "error"),
        (None, None, "info"),
    }
    assert "hush" not in "".join(lines)


async def test_an_error_that_ends_the_process_is_one_line_too_and_says_where_it_arose() -> None:
    status, lines, error = await run(signal.SIGTERM, "fail")
    assert (status, error) == (1, "")
    entry: dict[str, Any] = json.loads(lines[-1])
    assert (entry["event"], entry["error"], entry["service"]) == ("uncaught", "RuntimeError", "noisy")
    assert "noisy.py" in entry["exception"]
    assert "hush" not in "".join(lines)


async def run(ended_by: signal.Signals, *arguments: str) -> tuple[int | None, list[str], str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.chassis.noisy", *arguments, cwd=ROOT, stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(60):
        while line := (await process.stdout.readline()).decode():
            lines.append(line)
            if '"serving"' in line:
                process.send_signal(ended_by)
        assert process.stderr is not None
        error = (await process.stderr.read()).decode()
        await process.wait()
    return process.returncode, lines, error
