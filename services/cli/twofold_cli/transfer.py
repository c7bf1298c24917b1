"""`twofold import` and `twofold export`: conversations from a file into a memory service, and out of one into a file."""

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from twofold.client import Twofold
from twofold.errors.v1.reason_pb2 import Reason
from twofold.memory.v1 import transfer_pb2 as pb
from twofold.memory.v1.transfer_pb2_grpc import TransferServiceStub
from twofold.refusals import reason
from twofold_chassis.start import StartError

ACTOR = (("twofold-actor", "twofold-cli"),)
_CHUNK_BYTES = 512 * 1024
_STREAM_S = 24 * 3600.0
_TRIES = 6
_TRY_AGAIN_S = 1.0
_ERRORS_SHOWN = 50
_GOES_ON = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED)

ChunksFrom = Callable[[int], Iterator[bytes] | AsyncIterator[bytes]]
"""The text from a line on."""


@dataclass
class Imported:
    """What an import has come to, all its streams together."""

    next_line: int = 1
    conversations: int = 0
    messages: int = 0
    messages_found: int = 0
    errors: list[pb.ImportLineError] = field(default_factory=list)
    stopped: bool = False


async def import_all(
    transfers: TransferServiceStub,
    header: pb.ImportHeader,
    chunks_from: ChunksFrom,
    tell: Callable[[int], None] = lambda _: None,
) -> Imported:
    """Sends the text; where the stream breaks off, it goes on from the first line that is not stored. Raises AioRpcError.

    `tell` hears of the next line. The same text under the same import_id stores nothing twice.
    """
    imported, tries = Imported(next_line=header.first_line or 1), 0
    while True:
        begun = imported.next_line
        try:
            await _import_some(transfers, header, chunks_from, imported, tell)
        except grpc.aio.AioRpcError as error:
            tries = 1 if imported.next_line > begun else tries + 1
            if error.code() not in _GOES_ON or tries >= _TRIES:
                raise
            await asyncio.sleep(_TRY_AGAIN_S)
        else:
            return imported


async def _import_some(
    transfers: TransferServiceStub,
    header: pb.ImportHeader,
    chunks_from: ChunksFrom,
    imported: Imported,
    tell: Callable[[int], None],
) -> None:
    first_line = imported.next_line

    async def requests() -> AsyncIterator[pb.ImportConversationsRequest]:
        sent = pb.ImportHeader()
        sent.CopyFrom(header)
        sent.first_line = first_line
        yield pb.ImportConversationsRequest(header=sent)
        chunks = chunks_from(first_line)
        if isinstance(chunks, AsyncIterator):
            async for chunk in chunks:
                yield pb.ImportConversationsRequest(chunk=chunk)
        else:
            for chunk in chunks:
                yield pb.ImportConversationsRequest(chunk=chunk)

    before = (imported.conversations, imported.messages, imported.messages_found)
    bad = {error.line for error in imported.errors}
    async for answer in transfers.ImportConversations(requests(), timeout=_STREAM_S, metadata=ACTOR):
        progress = answer.progress
        match answer.WhichOneof("answer"):
            case "line_error":
                if answer.line_error.line not in bad:  # else it was told before the stream broke off
                    imported.errors.append(answer.line_error)
                continue
            case "summary":
                progress, imported.stopped = answer.summary.progress, answer.summary.stopped
        counts = (progress.conversations, progress.messages, progress.messages_found)
        imported.conversations, imported.messages, imported.messages_found = map(sum, zip(before, counts, strict=True))
        imported.next_line = progress.next_line
        tell(progress.next_line)


async def export_all(
    transfers: TransferServiceStub,
    request: pb.ExportConversationsRequest,
    write: Callable[[bytes], object],
) -> None:
    """Writes whole conversations; where the stream breaks off, it goes on behind the last one. Raises AioRpcError."""
    tries = 0
    while True:
        held: list[bytes] = []
        begun = request.page_token
        try:
            async for answer in transfers.ExportConversations(request, timeout=_STREAM_S, metadata=ACTOR):
                held.append(answer.chunk)
                if answer.next_page_token:
                    request.page_token = answer.next_page_token
                    write(b"".join(held))
                    held.clear()
        except grpc.aio.AioRpcError as error:
            tries = 1 if request.page_token != begun else tries + 1
            if error.code() not in _GOES_ON or tries >= _TRIES:
                raise
            await asyncio.sleep(_TRY_AGAIN_S)
        else:
            return


def chunks_of(path: Path, first_line: int) -> Iterator[bytes]:
    """A file's bytes from a line on."""
    with path.open("rb") as file:
        for _ in range(first_line - 1):
            file.readline()
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _fingerprint(path: Path) -> tuple[str, int]:
    """A name for a file's content, and how many lines it has. Raises StartError."""
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    try:
        for chunk in chunks_of(path, 1):
            digest.update(chunk)
            lines, last = lines + chunk.count(b"\n"), chunk[-1:]
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror or error}") from None
    return digest.hexdigest()[:32], lines + (last != b"\n")


async def import_file(
    console: Console,
    path: Path,
    *,
    target: str,
    workspace_id: str,
    user_id: str = "",
    import_id: str = "",
    first_line: int = 1,
    stop_at_error: bool = False,
) -> int:
    """Returns the exit status: 0 if every line was taken. Raises StartError."""
    content, lines = _fingerprint(path)
    header = pb.ImportHeader(
        workspace_id=workspace_id,
        import_id=import_id or f"file-{content}",
        user_id=user_id,
        first_line=first_line,
        on_error=pb.ON_LINE_ERROR_STOP if stop_at_error else pb.ON_LINE_ERROR_CONTINUE,
    )
    began = time.perf_counter()
    async with Twofold(memory=target) as twofold:
        with _bar(Console(stderr=True)) as progress:
            bar = progress.add_task("importing", total=lines, completed=first_line - 1)
            try:
                imported = await import_all(
                    twofold.transfers,
                    header,
                    lambda line: chunks_of(path, line),
                    lambda next_line: progress.update(bar, completed=next_line - 1),
                )
            except grpc.aio.AioRpcError as error:
                done = int(progress.tasks[0].completed) + 1
                raise StartError(f"{_told(error)}; go on with --first-line {done}") from None
    for bad in imported.errors[:_ERRORS_SHOWN]:
        where = f"{bad.field}: " if bad.field else ""
        console.print(f"line {bad.line}: {where}{bad.message} ({bad.reason})", markup=False, style="yellow")
    if len(imported.errors) > _ERRORS_SHOWN:
        console.print(f"and {len(imported.errors) - _ERRORS_SHOWN} more lines", style="yellow")
    found = f", {imported.messages_found} were there" if imported.messages_found else ""
    console.print(
        f"{imported.conversations} conversations, {imported.messages} messages stored{found}, "
        f"{len(imported.errors)} lines not taken, in {time.perf_counter() - began:.1f} s"
    )
    if imported.stopped:
        console.print(f"stopped: go on with --first-line {imported.next_line}")
    return 1 if imported.errors else 0


async def export_file(console: Console, path: Path | None, *, target: str, request: pb.ExportConversationsRequest) -> int:
    """Into the file, which is there only when it is whole, or to standard output. Returns the exit status."""
    if path is None:
        await _export(console, sys.stdout.buffer, target, request)
        sys.stdout.buffer.flush()
        return 0
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            await _export(console, file, target, request)
        os.replace(part, path)
    except OSError as error:
        raise StartError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
    return 0


async def _export(console: Console, file: BinaryIO, target: str, request: pb.ExportConversationsRequest) -> None:
    conversations = 0
    told = Console(stderr=True)
    began = time.perf_counter()
    with _bar(told) as progress:
        bar = progress.add_task("exporting", total=None)

        def write(data: bytes) -> None:
            nonlocal conversations
            file.write(data)
            conversations += data.count(b"\n")
            progress.update(bar, completed=conversations)

        async with Twofold(memory=target) as twofold:
            try:
                await export_all(twofold.transfers, request, write)
            except grpc.aio.AioRpcError as error:
                raise StartError(_told(error)) from None
    told.print(f"{conversations} conversations in {time.perf_counter() - began:.1f} s")


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def _told(error: grpc.aio.AioRpcError) -> str:
    code = reason(error)
    name = Reason.Name(code) if code else ""
    return " ".join(part for part in (error.code().name, name) if part) + f": {error.details()}"
