"""`twofold import` and `twofold export`, as a person uses them, on a memory service that is running."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from rich.console import Console

from tests.memory.rooms import Memory, database_of, serving
from twofold.client import Twofold
from twofold.memory.v1 import transfer_pb2 as pb
from twofold_chassis.settings import RedisSettings
from twofold_chassis.start import StartError
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.transfer import chunks_of, export_all, export_file, import_all, import_file


@pytest.fixture(scope="module")
async def memory(postgres_server: EmbeddedPostgres, redis_settings: RedisSettings) -> AsyncIterator[Memory]:
    database = database_of(await postgres_server.create_database("cli_transfer"))
    async with serving(database, redis_settings) as room:
        yield room


def line(number: int, text: str = "hello") -> bytes:
    told = {"thread_id": f"t{number:03}", "messages": [{"role": "user", "content": text}]}
    return json.dumps(told, separators=(",", ":")).encode() + b"\n"


def target(memory: Memory) -> str:
    return f"127.0.0.1:{memory.port}"


async def test_a_file_goes_in_and_comes_out_the_same(
    memory: Memory, workspace_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, copy = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"".join(line(number) for number in range(250)))
    console = Console(soft_wrap=True)
    for told in ("250 conversations, 250 messages stored, 0", "250 conversations, 0 messages stored, 250 were there, 0"):
        assert await import_file(console, source, target=target(memory), workspace_id=workspace_id) == 0
        assert told in capsys.readouterr().out
    request = pb.ExportConversationsRequest(workspace_id=workspace_id)
    assert await export_file(console, copy, target=target(memory), request=request) == 0
    assert copy.read_bytes() == source.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


async def test_lines_that_are_not_taken_are_told_and_make_the_exit_status(
    memory: Memory, workspace_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(line(1) + b'{"messages": [{"role": "user"}]}\n' + line(2))
    where: dict[str, Any] = {"target": target(memory), "workspace_id": workspace_id}
    assert await import_file(Console(soft_wrap=True), source, **where) == 1
    said = capsys.readouterr().out
    assert "line 2: messages[0].content: is required" in said
    assert "2 conversations, 2 messages stored, 1 lines not taken" in said
    assert await import_file(Console(soft_wrap=True), source, **where, import_id="stops", stop_at_error=True) == 1
    assert "go on with --first-line 2" in capsys.readouterr().out


async def test_what_cannot_be_done_is_one_sentence(memory: Memory, workspace_id: str, tmp_path: Path) -> None:
    console = Console()
    with pytest.raises(StartError, match="cannot read"):
        await import_file(console, tmp_path / "none", target=target(memory), workspace_id=workspace_id)
    source = tmp_path / "in.jsonl"
    source.write_bytes(line(1))
    with pytest.raises(StartError, match=r"INVALID_ARGUMENT REASON_INVALID_FIELD: header\.workspace_id"):
        await import_file(console, source, target=target(memory), workspace_id="")
    with pytest.raises(StartError, match="INVALID_ARGUMENT REASON_INVALID_FIELD: workspace_id"):
        await export_file(console, tmp_path / "out", target=target(memory), request=pb.ExportConversationsRequest())
    assert os.listdir(tmp_path) == ["in.jsonl"]


class Breaking:
    """A stub whose streams break off after some answers, as those of a worker that is killed do."""

    def __init__(self, stub: Any, after: int) -> None:
        self._stub = stub
        self._after = after
        self.broken = 0

    async def ImportConversations(self, requests: Any, **options: Any) -> AsyncIterator[Any]:
        async for answer in self._broken(self._stub.ImportConversations(requests, **options)):
            yield answer

    async def ExportConversations(self, request: Any, **options: Any) -> AsyncIterator[Any]:
        async for answer in self._broken(self._stub.ExportConversations(request, **options)):
            yield answer

    async def _broken(self, call: Any) -> AsyncIterator[Any]:
        left = self._after
        async for answer in call:
            if not left and self.broken < 3:
                self.broken += 1
                call.cancel()
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone")
            left -= 1
            yield answer


async def test_streams_that_break_off_go_on_where_they_were(
    memory: Memory, workspace_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twofold_cli.transfer._TRY_AGAIN_S", 0.0)
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"".join(line(number, "x" * 9000) for number in range(400)))
    async with Twofold(memory=target(memory)) as twofold:
        breaking: Any = Breaking(twofold.transfers, 1)
        header = pb.ImportHeader(workspace_id=workspace_id, import_id="i")
        begun: list[int] = []

        def chunks(first_line: int) -> Any:
            begun.append(first_line)
            return chunks_of(source, first_line)

        imported = await import_all(breaking, header, chunks)
        # Lines that were stored out of their order are sent again, and found.
        assert (imported.conversations >= 400, imported.messages + imported.messages_found >= 400) == (True, True)
        assert imported.errors == []
        assert breaking.broken == 3
        assert begun == sorted(begun)
        breaking = Breaking(twofold.transfers, 2)
        written: list[bytes] = []
        await export_all(breaking, pb.ExportConversationsRequest(workspace_id=workspace_id), written.append)
        assert breaking.broken == 3
    assert b"".join(written) == source.read_bytes()


async def test_the_command_exports_to_standard_output(memory: Memory, workspace_id: str, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(line(1) + line(2, "\u2028\r"))
    command = (sys.executable, "-m", "twofold_cli.main")
    where = ("--workspace", workspace_id, "--target", target(memory))
    for arguments, out in (
        (("import", str(source), *where), b"2 conversations, 2 messages stored, 0 lines not taken"),
        (("export", *where), source.read_bytes().replace(b"\\u2028", "\u2028".encode())),
        (("export", *where, "--thread", "t001"), line(1)),
    ):
        done = await asyncio.to_thread(
            subprocess.run, [*command, *arguments], capture_output=True, timeout=60, check=True, cwd=Path.cwd()
        )
        assert done.stdout.startswith(out), done
