"""`twofold audit`, as a person uses it, on a registry that is running and without one."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import grpc
import pytest
from rich.console import Console

from tests.databases import settings_of_database
from tests.registry.stubs import Registry, settings_of
from twofold.registry.v1 import audit_pb2 as pb
from twofold_chassis.start import StartError
from twofold_cli import audit
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.main import main
from twofold_cli.stack_folder import audit_key
from twofold_registry.app import registry
from twofold_registry.audit_keys import private_key

KEY = base64.b64encode(bytes(range(32))).decode()
PUBLIC_KEY = base64.b64encode(private_key(KEY).public_key().public_bytes_raw()).decode()


@dataclass(frozen=True)
class Room:
    target: str
    api: Registry


@pytest.fixture(scope="module")
async def room(postgres_server: EmbeddedPostgres) -> AsyncIterator[Room]:
    database = settings_of_database(await postgres_server.create_database("cli_audit"))
    async with registry(settings_of(database, audit_signing_key=KEY)) as running:
        target = f"127.0.0.1:{running.port}"
        async with grpc.aio.insecure_channel(target) as channel:
            yield Room(target, Registry(channel))


@pytest.fixture
def console() -> Console:
    return Console(highlight=False, soft_wrap=True)


async def furnish(room: Room, workspace_id: str, agents: int = 3) -> None:
    await room.api.make_workspace(workspace_id)
    for index in range(agents):
        await room.api.make_agent(workspace_id, f"agent-{index}", display_name="höflich \u2028")


async def test_a_chain_is_verified_and_exported_and_its_file_verified_without_a_service(
    room: Room, workspace_id: str, tmp_path: Path, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    await furnish(room, workspace_id)
    file, head = tmp_path / "audit.jsonl", tmp_path / "head.json"
    assert await audit.verify(console, workspace_id, target=room.target, head=None) == 0
    assert await audit.export_head(workspace_id, head, target=room.target) == 0
    assert await audit.verify(console, workspace_id, target=room.target, head=head) == 0
    assert await audit.export(workspace_id, file, target=room.target) == 0
    for command in ([], ["--head", str(head)], ["--head", str(head), "--key", PUBLIC_KEY]):
        assert await verify_file(file, *command) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "[info " not in line]
    assert len(told) == 5
    assert len(set(told)) == 1
    assert told[0].startswith("OK: 4 entries, the hash of the last is ")
    lines = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    assert [line["action"] for line in lines] == ["workspace.create", *["agent.create"] * 3]


async def verify_file(file: Path, *options: str) -> int:
    """The exit status of the command, which has an event loop of its own."""

    def run() -> int:
        with pytest.raises(SystemExit) as ended:
            main(["audit", "verify-file", str(file), *options])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return await asyncio.to_thread(run)


async def test_a_file_that_was_changed_and_a_head_of_another_key_are_found(
    room: Room, workspace_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await furnish(room, workspace_id)
    file, head = tmp_path / "audit.jsonl", tmp_path / "head.json"
    await audit.export(workspace_id, file, target=room.target)
    await audit.export_head(workspace_id, head, target=room.target)
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    forged = lines[2].replace("agent.create", "agent.delete")
    for changed, problem in (
        (
            [*lines[:2], forged, lines[3]],
            "seq 3: the hash is not that of the content",
        ),
        ([lines[0], *lines[2:]], "seq 2: missing: the next entry is that of 3"),
        ([lines[0], lines[2], lines[1], lines[3]], "seq 2: missing"),
        ([*lines[:2], lines[1], *lines[2:]], "seq 2: an entry too many"),
        (lines[:3], "seq 4: missing: when the head was signed the chain ended at 4"),
    ):
        file.write_text("\n".join(changed) + "\n", encoding="utf-8")
        assert await verify_file(file, "--head", str(head)) == 1
        assert f"BROKEN at {problem}" in capsys.readouterr().out
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    another = private_key(base64.b64encode(b"a" * 32).decode()).public_key().public_bytes_raw()
    assert await verify_file(file, "--head", str(head), "--key", base64.b64encode(another).decode()) == 1
    assert "was not signed by this key" in capsys.readouterr().out


async def test_what_cannot_be_done_is_one_sentence(room: Room, tmp_path: Path, console: Console) -> None:
    with pytest.raises(StartError, match="NOT_FOUND REASON_WORKSPACE_UNKNOWN"):
        await audit.verify(console, "nowhere", target=room.target, head=None)
    with pytest.raises(StartError, match="NOT_FOUND REASON_WORKSPACE_UNKNOWN"):
        await audit.export("nowhere", tmp_path / "out", target=room.target)
    with pytest.raises(StartError, match="cannot read"):
        audit.verify_file(console, tmp_path / "none", head=None, key="")
    (tmp_path / "other").write_text("not json\n")
    with pytest.raises(StartError, match="line 1 of"):
        audit.verify_file(console, tmp_path / "other", head=None, key="")


async def test_a_verification_that_breaks_off_goes_on_where_it_was_also_behind_its_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "_TRY_AGAIN_S", 0)
    asked: list[tuple[int, bool]] = []

    async def verify_audit(request: pb.VerifyAuditRequest, timeout: float) -> AsyncIterator[pb.VerifyAuditResponse]:
        asked.append((request.after_seq, request.HasField("signed_head")))
        if request.after_seq == 1500:
            yield pb.VerifyAuditResponse(result=pb.AuditResult(verified=pb.AuditProgress(seq=1600)))
            return
        yield pb.VerifyAuditResponse(progress=pb.AuditProgress(seq=request.after_seq + 500, hash=bytes(32)))
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())

    client: Any = SimpleNamespace(audit=SimpleNamespace(VerifyAudit=verify_audit))
    request = pb.VerifyAuditRequest(workspace_id="w", signed_head=pb.SignedAuditHead(seq=700))
    assert (await audit._verified(client, request)).verified.seq == 1600
    assert asked == [(0, True), (500, True), (1000, False), (1500, False)]


async def test_an_export_that_fails_leaves_the_file_as_it_was(
    room: Room, workspace_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half of an export would pass for the whole of a shorter chain."""
    await furnish(room, workspace_id)
    file = tmp_path / "audit.jsonl"
    await audit.export(workspace_id, file, target=room.target)
    whole = file.read_bytes()
    with pytest.raises(StartError):
        await audit.export("nowhere", file, target=room.target)
    assert file.read_bytes() == whole

    async def breaks(out: BinaryIO, *_: str) -> None:
        out.write(whole[:100])
        raise StartError("broken off")

    monkeypatch.setattr(audit, "_export", breaks)
    with pytest.raises(StartError):
        await audit.export(workspace_id, file, target=room.target)
    assert file.read_bytes() == whole
    assert [path.name for path in await asyncio.to_thread(lambda: list(tmp_path.iterdir()))] == ["audit.jsonl"]


def test_a_file_without_entries_is_no_export(tmp_path: Path, console: Console) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(StartError, match="holds no entries"):
        audit.verify_file(console, tmp_path / "empty", head=None, key="")


def test_a_key_without_a_head_checks_nothing_and_says_so(tmp_path: Path, console: Console) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="--head"):
        audit.verify_file(console, tmp_path / "file", head=None, key=PUBLIC_KEY)


def test_a_stack_makes_its_key_once_and_keeps_it_to_itself(tmp_path: Path) -> None:
    key = audit_key(tmp_path)
    assert private_key(key)
    assert audit_key(tmp_path) == key
    assert (tmp_path / "audit.key").stat().st_mode & 0o777 == 0o600
