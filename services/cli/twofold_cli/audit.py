"""`twofold audit`: the audit of a workspace verified, exported and signed; and a file of it verified without any service."""

import asyncio
import base64
import binascii
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import grpc
from google.protobuf.json_format import MessageToJson, Parse, ParseError
from google.protobuf.message import Message
from rich.console import Console

from twofold import audit
from twofold.client import Twofold
from twofold.errors.v1.reason_pb2 import Reason
from twofold.refusals import reason
from twofold.registry.v1 import audit_pb2 as pb
from twofold_chassis.start import StartError

ACTOR = "twofold-cli"
_STREAM_S = 24 * 3600.0
_TRIES = 6
_TRY_AGAIN_S = 1.0
_GOES_ON = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED)

Form = TypeVar("Form", bound=Message)


async def verify(console: Console, workspace_id: str, *, target: str, head: Path | None) -> int:
    """The whole chain at the service. Returns the exit status: 0 if all is well. Raises StartError."""
    request = pb.VerifyAuditRequest(workspace_id=workspace_id)
    if head is not None:
        request.signed_head.CopyFrom(_read_head(head))
    async with Twofold(registry=target, actor=ACTOR) as client:
        result = await _verified(client, request)
    if result.HasField("fault"):
        name = pb.AuditFaultKind.Name(result.fault.kind)
        console.print(f"BROKEN at seq {result.fault.seq}: {result.fault.message} ({name})", markup=False)
        return 1
    console.print(f"OK: {result.verified.seq} entries, the hash of the last is {result.verified.hash.hex()}")
    return 0


async def _verified(client: Twofold, request: pb.VerifyAuditRequest) -> pb.AuditResult:
    """The result, with a stream that breaks off gone on with from its last progress."""
    tries = 0
    while True:
        try:
            async for answer in client.audit.VerifyAudit(request, timeout=_STREAM_S):
                if answer.WhichOneof("answer") == "result":
                    return answer.result
                tries = 0
                if not answer.progress.seq:
                    continue
                request.after_seq, request.after_hash = answer.progress.seq, answer.progress.hash
                if request.signed_head.seq < request.after_seq:  # it has been met; one that was not stays asked for
                    request.ClearField("signed_head")
        except grpc.aio.AioRpcError as error:
            tries = await _again(error, tries)


async def export(workspace_id: str, file: Path | None, *, target: str) -> int:
    """JSON Lines, one entry a line, oldest first, into the file or to standard output. Raises StartError."""
    try:
        if file is None:
            await _export(sys.stdout.buffer, workspace_id, target)
            sys.stdout.buffer.flush()
        else:
            with _whole(file) as out:
                await _export(out, workspace_id, target)
    except OSError as error:
        raise StartError(f"cannot write: {error.strerror or error}") from None
    return 0


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[BinaryIO]:
    """The file, which gets all that is written in the block, or stays as it was: a half would pass for a shorter chain."""
    if file.exists() and not file.is_file():  # a pipe, say
        with file.open("wb") as out:
            yield out
        return
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as out:
            yield out
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


async def _export(out: BinaryIO, workspace_id: str, target: str) -> None:
    request, tries = pb.ExportAuditRequest(workspace_id=workspace_id), 0
    async with Twofold(registry=target, actor=ACTOR) as client:
        while True:
            try:
                async for answer in client.audit.ExportAudit(request, timeout=_STREAM_S):
                    out.write(b"".join(_json(entry).encode() + b"\n" for entry in answer.entries))
                    request.after_seq, tries = answer.entries[-1].seq, 0
            except grpc.aio.AioRpcError as error:
                tries = await _again(error, tries)
            else:
                return


async def export_head(workspace_id: str, file: Path | None, *, target: str) -> int:
    """The signed end of the chain as JSON, into the file or to standard output. Raises StartError."""
    async with Twofold(registry=target, actor=ACTOR) as client:
        try:
            answer = await client.audit.ExportAuditHead(pb.ExportAuditHeadRequest(workspace_id=workspace_id))
        except grpc.aio.AioRpcError as error:
            raise StartError(_told(error)) from None
    if file is None:
        print(_json(answer))
    else:
        _write(file, _json(answer) + "\n")
    return 0


def verify_file(console: Console, file: Path, *, head: Path | None, key: str) -> int:
    """What `twofold audit export` wrote, and the head that it must hold. Asks no service. Raises StartError."""
    if key and head is None:
        raise StartError("--key is of a head's signature: say which with --head")
    signed = _read_head(head) if head is not None else None
    if signed is not None and not audit.signed_by(signed, _public_key(head, key)):
        console.print("BROKEN: the head was not signed by this key, or was changed")
        return 1
    try:
        end = audit.verify(_read(file), head=signed)
        if end == audit.FIRST:
            raise StartError(f"{file} holds no entries: every chain begins with that of its workspace's creation")
    except audit.ChainBroken as broken:
        console.print(f"BROKEN at {broken}", markup=False)
        return 1
    console.print(f"OK: {end.seq} entries, the hash of the last is {end.hash.hex()}")
    return 0


def _read(file: Path) -> Iterator[pb.AuditEntry]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield _parsed(line, pb.AuditEntry(), f"line {number} of {file}")
    except OSError as error:
        raise StartError(f"cannot read {file}: {error.strerror or error}") from None


def _read_head(file: Path) -> pb.SignedAuditHead:
    return _exported(file).signed_head


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StartError(f"cannot write {file}: {error.strerror or error}") from None


def _exported(file: Path) -> pb.ExportAuditHeadResponse:
    try:
        return _parsed(file.read_bytes(), pb.ExportAuditHeadResponse(), str(file))
    except OSError as error:
        raise StartError(f"cannot read {file}: {error.strerror or error}") from None


def _public_key(head: Path | None, key: str) -> bytes:
    """The key that a person has noted down; else that of the file, which proves only that the file is whole."""
    if not key and head is not None:
        return _exported(head).public_key
    try:
        return base64.b64decode(key, validate=True)
    except binascii.Error:
        raise StartError("--key is the public key in base64, as GetAuditKey gives it") from None


def _parsed(text: bytes, message: Form, what: str) -> Form:
    try:
        return Parse(text, message)
    except (ParseError, UnicodeDecodeError, json.JSONDecodeError):
        raise StartError(f"{what} is not what `twofold audit` writes") from None


def _json(message: Message) -> str:
    return MessageToJson(message, preserving_proto_field_name=True, indent=None, ensure_ascii=False)


async def _again(error: grpc.aio.AioRpcError, tries: int) -> int:
    """Waits and counts a try more, where a stream can be gone on with. Raises StartError."""
    if error.code() not in _GOES_ON or tries >= _TRIES:
        raise StartError(_told(error)) from None
    await asyncio.sleep(_TRY_AGAIN_S)
    return tries + 1


def _told(error: grpc.aio.AioRpcError) -> str:
    code = reason(error)
    name = Reason.Name(code) if code else ""
    return " ".join(part for part in (error.code().name, name) if part) + f": {error.details()}"
