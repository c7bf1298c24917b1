"""`twofold demo --transcripts`: real conversations in, through memory, and back out byte for byte."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from twofold.client import Twofold
from twofold.memory.v1 import conversation_pb2 as pb
from twofold.memory.v1 import message_pb2
from twofold_cli.demo import transcripts
from twofold_cli.demo.narrator import Narrator, took
from twofold_cli.demo.transcripts import Transcript
from twofold_cli.stack import Stack, raise_stack

_AT_ONCE = 8
_CALL_S = 30.0
_WINDOW_MAX = 500

Do = Callable[[Transcript], Awaitable[str | None]]


async def replay(console: Console, path: Path, *, kill_redis: bool) -> int:
    """Returns the exit status: 0 if every conversation came back as it went in."""
    narrator = Narrator(console)
    found = transcripts.read(path)
    messages = sum(len(transcript.sources) for transcript in found)
    narrator.title(f"{len(found)} conversations, {messages} messages: into memory, and back out byte for byte\n")
    async with (
        raise_stack(ephemeral=True, warn=narrator.warn) as stack,
        Twofold(registry=stack.registry.target, memory=stack.memory.target, router=stack.router.target) as twofold,
    ):
        replaying = _Replay(twofold, stack, f"replay-{uuid.uuid4().hex[:6]}", found, console)
        seconds = await replaying.write(kill_redis=kill_redis)
        narrator.step("written", f"{replaying.turns} turns, each acknowledged when committed", took(seconds))
        if kill_redis:
            narrator.step(
                "redis", "was killed with kill -9 halfway, while turns were being written, and started again", style="red"
            )
        wrong, seconds = await replaying.compare()
    for thread_id in wrong:
        narrator.check("differs", False, thread_id)
    same = len(found) - len(wrong)
    narrator.check("compared", not wrong, f"{same} of {len(found)} conversations came back byte for byte ({took(seconds)})")
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
        self._written = 0
        self.turns = 0
        self.sources: dict[str, int] = {}

    async def write(self, *, kill_redis: bool) -> float:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._all("writing", self._found, self._write))
            if kill_redis:
                group.create_task(self._kill_redis())
        return time.perf_counter() - began

    async def _kill_redis(self) -> None:
        """Under load: dead from half of the conversations on, back after three quarters."""
        await self._halfway.wait()
        await self._stack.redis.kill()
        await self._three_quarters.wait()
        await self._stack.redis.start()

    async def compare(self) -> tuple[list[str], float]:
        began = time.perf_counter()
        wrong = [thread_id for thread_id in await self._all("comparing", self._found, self._differs) if thread_id]
        return wrong, time.perf_counter() - began

    async def _all(self, title: str, some: Sequence[Transcript], do: Do) -> list[str | None]:
        columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task(title, total=len(some))

            async def one(transcript: Transcript) -> str | None:
                async with self._places:
                    result = await do(transcript)
                progress.advance(bar)
                return result

            return await asyncio.gather(*map(one, some))

    async def _write(self, transcript: Transcript) -> str | None:
        for number, turn in enumerate(transcript.turns()):
            request = pb.AppendTurnRequest(
                workspace_id=self._workspace_id,
                thread_id=transcript.thread_id,
                request_id=f"{transcript.thread_id}/{number}",
                messages=turn,
            )
            await self._twofold.conversations.AppendTurn(request, timeout=_CALL_S)
            self.turns += 1
        self._written += 1
        if self._written * 2 >= len(self._found):
            self._halfway.set()
        if self._written * 4 >= len(self._found) * 3:
            self._three_quarters.set()
        return None

    async def _differs(self, transcript: Transcript) -> str | None:
        """The thread's id if what Postgres lists, or what a window shows, is not what was written."""
        window = await self._twofold.conversations.ReadWindow(
            pb.ReadWindowRequest(
                workspace_id=self._workspace_id, thread_id=transcript.thread_id, message_count_max=_WINDOW_MAX
            ),
            timeout=_CALL_S,
        )
        source = message_pb2.ReadSource.Name(window.source).removeprefix("READ_SOURCE_")
        self.sources[source] = self.sources.get(source, 0) + 1
        whole = transcript.same_as(window.messages) and transcript.same_as(await self._listed(transcript))
        return None if whole else transcript.thread_id

    async def _listed(self, transcript: Transcript) -> list[message_pb2.Message]:
        messages: list[message_pb2.Message] = []
        request = pb.ListMessagesRequest(workspace_id=self._workspace_id, thread_id=transcript.thread_id)
        while True:
            page = await self._twofold.conversations.ListMessages(request, timeout=_CALL_S)
            messages += page.messages
            if not page.next_page_token:
                return messages
            request.page_token = page.next_page_token
