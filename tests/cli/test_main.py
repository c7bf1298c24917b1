"""The command itself, as a person types it."""

from importlib.metadata import version
from pathlib import Path

import pytest

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
