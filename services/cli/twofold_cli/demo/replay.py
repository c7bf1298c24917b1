"""`twofold demo --transcripts`: real conversations in by import, through memory, and back out by export byte for byte."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from twofold.client import Twofold
from twofold.memory.v1 import conversation_pb2 as pb
from twofold.memory.v1 import message_pb2, transfer_pb2
from twofold_chassis.start import StartError
from twofold_cli.demo import transcripts
from twofold_cli.demo.narrator import Narrator, took
from twofold_cli.demo.transcripts import Transcript
from twofold_cli.stack import Stack, raise_stack
from twofold_cli.transfer import export_all, import_all

_AT_ONCE = 8
_CALL_S = 30.0
_WINDOW_MAX = 500

Do = Callable[[Transcript], Awaitable[str | None]]


async def replay(console: Console, path: Path, *, kill_redis: bool) -> int:
    """Returns the exit status: 0 if every conversation came back as it went in."""
    narrator = Narrator(console)
    found = transcripts.read(path)
    messages = sum(len(transcript.sources) for transcript in found)
    narrator.title(f"{len(found)} conversations, {messages} messages: imported into memory, exported, and compared\n")
    async with (
        raise_stack(ephemeral=True, warn=narrator.warn) as stack,
        Twofold(registry=stack.registry.target, memory=stack.memory.target, router=stack.router.target) as twofold,
    ):
        replaying = _Replay(twofold, stack, f"replay-{uuid.uuid4().hex[:6]}", found, console)
        seconds = await replaying.write(kill_redis=kill_redis)
        narrator.step("imported", f"{replaying.messages} messages, each acknowledged when committed", took(seconds))
        if kill_redis:
            narrator.step(
                "redis", "was killed with kill -9 halfway, while turns were being written, and started again", style="red"
            )
        wrong, seconds = await replaying.compare()
    for thread_id in wrong:
        narrator.check("differs", False, thread_id)
    same = len(found) - len(wrong)
    narrator.check("compared", not wrong, f"{same} of {len(found)} conversations came back as they were ({took(seconds)})")
    narrator.step("exported", f"{replaying.same_lines} lines are byte for byte those of the file")
    narrator.step("sources", ", ".join(f"{count} windows from {name}" for name, count in replaying.sources.items()))
    return 1 if wrong else 0


class _Replay:
    def __init__(
        self, twofold: Twofold, stack: Stack, workspace_id: str, found: Sequence[Transcript], console: Console
    ) -> None:
        self._twofold = twofold
        self._stack = stack
        self._workspace_id = workspace_id
        self._found = found
        self._console = console
        self._halfway = asyncio.Event()
        self._three_quarters = asyncio.Event()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._exported: dict[str, bytes] = {}
        self.messages = 0
        self.same_lines = 0
        self.sources: dict[str, int] = {}

    async def write(self, *, kill_redis: bool) -> float:
        """All in one import."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._import())
            if kill_redis:
                group.create_task(self._kill_redis())
        return time.perf_counter() - began

    async def _import(self) -> None:
        header = transfer_pb2.ImportHeader(workspace_id=self._workspace_id, import_id="replay")
        with self._bar() as progress:
            bar = progress.add_task("importing", total=len(self._found))
            imported = await import_all(
                self._twofold.transfers, header, self._lines, lambda line: progress.update(bar, completed=line - 1)
            )
        self.messages = imported.messages + imported.messages_found
        if imported.errors:
            raise StartError(f"line {imported.errors[0].line}: {imported.errors[0].message}")

    async def _lines(self, first_line: int) -> AsyncIterator[bytes]:
        for number, transcript in enumerate(self._found, 1):
            if number >= first_line:
                yield transcript.line + b"\n"
            # An import is read as it is stored: what was sent is about what is written.
            if number * 2 >= len(self._found):
                self._halfway.set()
            if number * 4 >= len(self._found) * 3:
                self._three_quarters.set()
            await asyncio.sleep(0)

    async def _kill_redis(self) -> None:
        """Under load: dead from half of the conversations on, back after three quarters."""
        await self._halfway.wait()
        await self._stack.redis.kill()
        await self._three_quarters.wait()
        await self._stack.redis.start()

    async def compare(self) -> tuple[list[str], float]:
        began = time.perf_counter()
        lines: list[bytes] = []
        request = transfer_pb2.ExportConversationsRequest(workspace_id=self._workspace_id)
        await export_all(self._twofold.transfers, request, lambda data: lines.extend(data.splitlines()))
        self._exported = {json.loads(line)["thread_id"]: line for line in lines}
        wrong = [thread_id for thread_id in await self._all("comparing", self._found, self._differs) if thread_id]
        return wrong, time.perf_counter() - began

    async def _all(self, title: str, some: Sequence[Transcript], do: Do) -> list[str | None]:
        with self._bar() as progress:
            bar = progress.add_task(title, total=len(some))

            async def one(transcript: Transcript) -> str | None:
                async with self._places:
                    result = await do(transcript)
                progress.advance(bar)
                return result

            return await asyncio.gather(*map(one, some))

    def _bar(self) -> Progress:
        columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=self._console)

    async def _differs(self, transcript: Transcript) -> str | None:
        """The thread's id if what is exported, or what a window shows, is not what was imported."""
        window = await self._twofold.conversations.ReadWindow(
            pb.ReadWindowRequest(
                workspace_id=self._workspace_id, thread_id=transcript.thread_id, message_count_max=_WINDOW_MAX
            ),
            timeout=_CALL_S,
        )
        source = message_pb2.ReadSource.Name(window.source).removeprefix("READ_SOURCE_")
        self.sources[source] = self.sources.get(source, 0) + 1
        line = self._exported.get(transcript.thread_id, b"{}")
        self.same_lines += line == transcript.line
        fits = len(transcript.sources) <= _WINDOW_MAX
        whole = transcript.says(json.loads(line).get("messages", [])) and (not fits or transcript.same_as(window.messages))
        return None if whole else transcript.thread_id
