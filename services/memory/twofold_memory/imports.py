"""Imports: a stream of text, a conversation a line, becomes turns that are stored exactly once, however often it is sent.

Lines are read no faster than they are stored: so many at a time, so many bytes of them. Turns go the way of all turns
(`appends`), in order within a conversation. A line that cannot be taken is told and no hindrance to the others.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from twofold_chassis import call
from twofold_chassis.refusals import (
    AlreadyExists,
    Busy,
    FailedPrecondition,
    InvalidArgument,
    InvalidField,
    NotFound,
    Overloaded,
    Refusal,
    StoreUnavailable,
)
from twofold_memory.threads import (
    Conversation,
    ConversationExists,
    JournaledTurn,
    JournalFull,
    KeptTurn,
    NewTurn,
    TurnOnItsWay,
    Wanted,
)

Thing = TypeVar("Thing")

CHUNK_BYTES_MAX = 1024 * 1024
LINE_BYTES_MAX = 16 * 1024 * 1024
_IMPORTS_MAX = 4
_LINES_AT_ONCE = 32
_BYTES_AT_ONCE = 32 * 1024 * 1024
_LARGE_BYTES = 256 * 1024
_PROGRESS_S = 1.0
_PROGRESS_LINES = 100
_WAITING_MAX = 100
# For what passes by itself: a thread that others hold, too much at once, a store that is starting again.
_PATIENCE_S = 20.0
_PASSES = (Busy, Overloaded, TurnOnItsWay, JournalFull, StoreUnavailable)
# What is the line's own fault, or its conversation's.
_OF_A_LINE = (InvalidArgument, NotFound, AlreadyExists, FailedPrecondition)


@dataclass(frozen=True, slots=True)
class Order:
    """What is imported: the text that `import_id` names, from its line `first_line` on."""

    workspace_id: str
    import_id: str
    user_id: str | None = None
    stop_at_error: bool = False
    first_line: int = 1


@dataclass(frozen=True, slots=True)
class Imported:
    """A line that was read. `described`: it says more of its conversation than a turn does, or holds no turn."""

    conversation: Conversation
    described: bool
    turns: Sequence[NewTurn]


class Line(NamedTuple):
    """A line and its number; without text if it is too long."""

    number: int
    text: bytes | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import has come: all before `next_line` are stored, or were told as bad."""

    next_line: int
    lines: int = 0
    conversations: int = 0
    messages: int = 0
    found: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that could not be taken."""

    line: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Summary:
    """The end of an import."""

    progress: Progress
    stopped: bool


Told = Progress | BadLine | Summary
Read = Callable[[Order, int, bytes], Imported]
"""Reads a line. Raises InvalidField."""


class Conversations(Protocol):
    """The truth about which conversations there are."""

    async def make(self, new: Conversation) -> None:
        """Makes one. Raises ConversationExists."""
        ...


class Appends(Protocol):
    """The way of turns into the store."""

    async def append(self, turn: NewTurn, wanted: Wanted) -> KeptTurn | JournaledTurn:
        """Stores the turn, or finds it stored."""
        ...


class Lines:
    """Cuts a stream of bytes into lines, and keeps no more of it than a line may have."""

    def __init__(self, first: int) -> None:
        self._number = first
        self._pieces: list[bytes] = []
        self._bytes = 0

    def cut(self, chunk: bytes) -> Iterator[Line]:
        """The lines that end in this chunk."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._keep(end)
            yield self._taken()
        self._keep(rest)

    def last(self) -> Iterator[Line]:
        """The line that the stream ends in, if it has one."""
        if self._bytes:
            yield self._taken()

    def _keep(self, piece: bytes) -> None:
        self._bytes += len(piece)
        if self._bytes <= LINE_BYTES_MAX:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def _taken(self) -> Line:
        line = Line(self._number, b"".join(self._pieces) if self._bytes <= LINE_BYTES_MAX else None)
        self._number += 1
        self._pieces, self._bytes = [], 0
        return line


class Imports:
    """The way in."""

    def __init__(self, conversations: Conversations, appends: Appends) -> None:
        self._conversations = conversations
        self._appends = appends
        self._under_way = 0

    async def run(self, order: Order, chunks: AsyncIterator[bytes], read: Read) -> AsyncGenerator[Told, None]:
        """Imports, and tells how it goes; the summary comes last. Raises Overloaded, StoreUnavailable, Draining."""
        if self._under_way >= _IMPORTS_MAX:
            raise Overloaded("too many imports are under way", retry_after_s=5.0)
        self._under_way += 1
        run = _Run(order, self._conversations, self._appends, read)
        work = asyncio.create_task(run.work(chunks))
        try:
            while (told := await call.unless_draining(run.next())) is not None:
                yield told
            await work
            yield Summary(run.progress, run.stopped)
        finally:
            self._under_way -= 1
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError, Refusal):
                await work


class _Run:
    """One import."""

    def __init__(self, order: Order, conversations: Conversations, appends: Appends, read: Read) -> None:
        self._order = order
        self._conversations = conversations
        self._appends = appends
        self._read = read
        self._lines = Lines(order.first_line)
        # Lines that are being stored, by number in ascending order, with their sizes; and the last one of each conversation.
        self._open: dict[int, int] = {}
        self._last_of: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._first_bad: int | None = None
        self._next_line = order.first_line
        self._counts = [0] * 5
        self._waiting: deque[BadLine | Progress] = deque()
        self._told_at = asyncio.get_running_loop().time()
        self._ended = False
        self._moved = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def stopped(self) -> bool:
        """Whether it has stopped at a line that could not be taken."""
        return self._order.stop_at_error and self._first_bad is not None

    @property
    def progress(self) -> Progress:
        """How far it has come."""
        following = next(iter(self._open), self._next_line)
        if self.stopped and self._first_bad is not None:
            following = min(following, self._first_bad)
        return Progress(following, *self._counts)

    async def next(self) -> Told | None:
        """What is to be told next, at least once a second how far it has come; None at the end."""
        while True:
            if self._waiting:
                self._moved.set()
                return self._waiting.popleft()
            if self._ended:
                return None
            left = self._told_at + _PROGRESS_S - asyncio.get_running_loop().time()
            if left <= 0:
                self._told_at = asyncio.get_running_loop().time()
                return self.progress
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()

    async def work(self, chunks: AsyncIterator[bytes]) -> None:
        """Reads and stores all there is. Raises what ends an import."""
        try:
            async for chunk in chunks:
                for line in self._lines.cut(chunk):
                    await self._take(line)
                if self.stopped:
                    break
            else:
                for line in self._lines.last():
                    await self._take(line)
            while self._open and self._failure is None:
                await self._move()
            self._check()
        finally:
            for task in self._tasks:
                task.cancel()
            self._ended = True
            self._news.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _move(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    async def _take(self, line: Line) -> None:
        """Begins to store a line, as soon as there is room for it."""
        if self.stopped:
            return
        size = len(line.text or b"")
        while self._failure is None and self._is_full(size):
            await self._move()
        self._check()
        self._counts[0] += 1
        self._next_line = line.number + 1
        if self._counts[0] % _PROGRESS_LINES == 0:
            self._waiting.append(self.progress)
            self._news.set()
        try:
            imported = await self._understood(line)
        except InvalidArgument as refusal:
            self._tell(line.number, refusal)
            return
        if imported is None:
            return
        self._open[line.number] = size
        before = self._last_of.get(imported.conversation.key.thread_id)
        task = asyncio.create_task(self._line(line.number, imported, before))
        self._last_of[imported.conversation.key.thread_id] = task
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._left(line.number, imported, ended))

    def _is_full(self, size: int) -> bool:
        if len(self._waiting) >= _WAITING_MAX or len(self._open) >= _LINES_AT_ONCE:
            return True
        return bool(self._open) and sum(self._open.values()) + size > _BYTES_AT_ONCE

    async def _understood(self, line: Line) -> Imported | None:
        """The line's conversation; None if it is empty."""
        if line.text is None:
            raise InvalidField("", f"the line has more than {LINE_BYTES_MAX} bytes")
        if not line.text.strip():
            return None
        if len(line.text) < _LARGE_BYTES:
            return self._read(self._order, line.number, line.text)
        return await asyncio.to_thread(self._read, self._order, line.number, line.text)

    async def _line(self, number: int, imported: Imported, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
            before.result()  # where that one could not be stored, this one may not go in front of it
        try:
            if imported.described:
                await _patiently(self._made, imported.conversation)
            for turn in imported.turns:
                found = await _patiently(self._stored, turn)
                self._counts[3 if found else 2] += len(turn.messages)
            self._counts[1] += 1
        except _OF_A_LINE as refusal:
            self._tell(number, refusal)

    async def _made(self, conversation: Conversation) -> bool:
        with contextlib.suppress(ConversationExists):
            await self._conversations.make(conversation)
        return True

    async def _stored(self, turn: NewTurn) -> bool:
        kept = await self._appends.append(turn, Wanted.COMMITTED)
        if isinstance(kept, JournaledTurn):
            raise TurnOnItsWay("the turn waits for Postgres", retry_after_s=0.5, turn_id=turn.turn_id)
        return kept.duplicate

    def _tell(self, number: int, refusal: Refusal) -> None:
        self._counts[4] += 1
        self._first_bad = number if self._first_bad is None else min(number, self._first_bad)
        self._waiting.append(BadLine(number, refusal))
        self._news.set()

    def _left(self, number: int, imported: Imported, ended: asyncio.Task[None]) -> None:
        del self._open[number]
        self._tasks.discard(ended)
        thread_id = imported.conversation.key.thread_id
        if self._last_of.get(thread_id) is ended:
            del self._last_of[thread_id]
        if not ended.cancelled() and (failure := ended.exception()) is not None and self._failure is None:
            self._failure = failure
        self._moved.set()


async def _patiently(do: Callable[[Thing], Awaitable[bool]], thing: Thing) -> bool:
    """What `do` returns, tried again for a while: doing it twice is harmless."""
    until = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            return await do(thing)
        except _PASSES as refusal:
            if asyncio.get_running_loop().time() >= until:
                raise
            await asyncio.sleep(refusal.retry_after_s or 0.2)
