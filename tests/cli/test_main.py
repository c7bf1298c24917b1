"""The command itself, as a person types it."""

import asyncio
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from twofold_cli.environment import bare_environment
from twofold_cli.main import main


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"twofold {version('twofold-services')}\n"


@pytest.mark.parametrize("line", ["[1, 2]", "7", "nonsense", '{"thread_id": "t"}', '{"thread_id": "t", "messages": [1]}'])
def test_a_line_that_is_no_conversation_is_named(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "transcripts.jsonl"
    path.write_text(f'{{"thread_id": "t", "messages": []}}\n{line}\n')
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--transcripts", str(path)])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("twofold: line 2: ")


async def test_up_says_where_everything_is_and_ends_in_order(folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "twofold_cli.main", "up", "--ephemeral"),
        cwd=folder,
        env=bare_environment() | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "MEMORY__PORT": "7"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    said = ""
    while "Ctrl-C stops everything" not in said:
        line = await process.stdout.readline()
        assert line, said
        said += line.decode()
    process.send_signal(signal.SIGINT)
    rest, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert "note MEMORY__PORT is not used" in said
    assert "WorkspaceService/CreateWorkspace" in said
    assert rest.decode().splitlines() == ["draining … (Ctrl-C again ends it at once)", "stopped"]
