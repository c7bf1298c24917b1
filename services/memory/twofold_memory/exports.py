"""Exports: conversations as a stream of bounded chunks, each conversation as it was at one moment.

No transaction is held while a slow reader takes its time. Within an epoch a conversation only grows, so pages that are read
one after the other, up to the newest number of the first look, are one state as long as the epoch stays the same; where it
does not, what was sent of the conversation is void, and the caller goes on from its last token.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from twofold_chassis import call
from twofold_chassis.refusals import HistoryChanged, Overloaded
from twofold_memory.threads import Entry, Head, ThreadKey

CHUNK_BYTES_MAX = 1024 * 1024
# With so much of whole conversations a chunk goes out: each is a place to go on from.
_CHUNK_BYTES_WORTH_SENDING = 256 * 1024
_EXPORTS_MAX = 4
_CONVERSATIONS_AT_ONCE = 100
_MESSAGES_AT_ONCE = 200
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Selection:
    """Which conversations, and how much of them."""

    workspace_id: str
    user_id: str | None = None
    thread_ids: Collection[str] = ()
    updated_from: datetime | None = None
    updated_before: datetime | None = None
    with_deleted: bool = False

    def has(self, found: "Found") -> bool:
        """Whether a conversation is one of them."""
        if self.user_id is not None and found.user_id != self.user_id:
            return False
        if self.updated_from is not None and found.updated_at < self.updated_from:
            return False
        if self.updated_before is not None and found.updated_at >= self.updated_before:
            return False
        return self.with_deleted or found.deleted_at is None


@dataclass(frozen=True, slots=True)
class Found:
    """A conversation to be exported: messages below next_seq, in this epoch."""

    thread_id: str
    user_id: str | None
    title: str
    metadata: Mapping[str, str]
    next_seq: int
    epoch: int
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None


class Chunk(NamedTuple):
    """Some bytes; `behind` is the last conversation that is whole with them, None within one."""

    data: bytes
    behind: str | None


class Writer(Protocol):
    """Writes conversations down, in pieces that are one line together."""

    def begins(self, found: Found) -> bytes:
        """What stands before the messages."""
        ...

    def says(self, entries: Sequence[Entry], *, first: bool) -> Iterable[bytes]:
        """Some messages; none may have been written before them if they are the first."""
        ...

    def ends(self) -> bytes:
        """What stands behind the messages."""
        ...


class Store(Protocol):
    """The truth about which conversations there are."""

    async def conversations(self, selection: Selection, behind: str, count: int) -> Sequence[Found]:
        """The next ones by thread id, behind one; times and deletion are not looked at."""
        ...


class Turns(Protocol):
    """The truth about what was said."""

    async def heads(self, keys: Sequence[ThreadKey]) -> list[Head | None]:
        """What is known of each thread."""
        ...

    async def page(self, key: ThreadKey, *, after: int | None, before: int | None, count: int) -> list[Entry]:
        """Messages after a seq in order."""
        ...


class Exports:
    """The way out."""

    def __init__(self, store: Store, turns: Turns) -> None:
        self._store = store
        self._turns = turns
        self._under_way = 0

    async def chunks(self, selection: Selection, behind: str, writer: Writer) -> AsyncGenerator[Chunk, None]:
        """All that is selected, behind a thread id. Raises Overloaded, HistoryChanged, Draining."""
        if self._under_way >= _EXPORTS_MAX:
            raise Overloaded("too many exports are under way", retry_after_s=5.0)
        self._under_way += 1
        try:
            chunk = _Chunk()
            while found := await call.unless_draining(self._store.conversations(selection, behind, _CONVERSATIONS_AT_ONCE)):
                for conversation in filter(selection.has, found):
                    async for full in self._one(selection, conversation, writer, chunk):
                        yield full
                behind = found[-1].thread_id
            if chunk.pieces:
                yield chunk.taken()
        finally:
            self._under_way -= 1

    async def _one(self, selection: Selection, found: Found, writer: Writer, chunk: "_Chunk") -> AsyncIterator[Chunk]:
        key = ThreadKey(selection.workspace_id, found.thread_id)
        only = Selection(key.workspace_id, thread_ids=(found.thread_id,))
        for _ in range(_TRIES):
            mark, sent = chunk.mark(), False
            try:
                async for piece in self._pieces(key, found, writer):
                    for full in chunk.put(piece):
                        sent = True
                        yield full
            except HistoryChanged:
                if sent:
                    raise  # a part of what is void now has gone out
                chunk.back_to(mark)
                again = [now for now in await self._store.conversations(only, "", 1) if selection.has(now)]
                if not again:
                    return
                found = again[0]
                continue
            chunk.behind = found.thread_id
            if chunk.bytes >= _CHUNK_BYTES_WORTH_SENDING:
                yield chunk.taken()
            return
        raise HistoryChanged(f"the past of the conversation {found.thread_id!r} changes all the time")

    async def _pieces(self, key: ThreadKey, found: Found, writer: Writer) -> AsyncIterator[bytes]:
        yield writer.begins(found)
        seq, first = 0, True
        while seq < found.next_seq - 1:
            page = await call.unless_draining(self._turns.page(key, after=seq, before=None, count=_MESSAGES_AT_ONCE))
            # Asked behind the page: that it is still of this epoch says that the page was, too.
            head = await self._head(key)
            if head is None or head.epoch != found.epoch:
                raise HistoryChanged(f"the past of the conversation {key.thread_id!r} was changed while it was exported")
            entries = [entry for entry in page if entry.seq < found.next_seq]
            if not entries:
                break
            for piece in writer.says(entries, first=first):
                first = False
                yield piece
            seq = entries[-1].seq
        yield writer.ends()

    async def _head(self, key: ThreadKey) -> Head | None:
        (head,) = await self._turns.heads([key])
        return head


class _Chunk:
    """What is gathered for the next chunk."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.behind: str | None = None
        self.bytes = 0

    def put(self, piece: bytes) -> Iterator[Chunk]:
        """Adds a piece; chunks that are full with it go out. Whole conversations go out first if it does not fit."""
        if self.behind is not None and self.bytes + len(piece) > CHUNK_BYTES_MAX:
            yield self.taken()
        self.behind = None
        self.pieces.append(piece)
        self.bytes += len(piece)
        while self.bytes > CHUNK_BYTES_MAX:
            data = b"".join(self.pieces)
            self.pieces, self.bytes = [data[CHUNK_BYTES_MAX:]], len(data) - CHUNK_BYTES_MAX
            yield Chunk(data[:CHUNK_BYTES_MAX], None)

    def taken(self) -> Chunk:
        """All there is."""
        chunk = Chunk(b"".join(self.pieces), self.behind)
        self.pieces, self.bytes = [], 0
        return chunk

    def mark(self) -> tuple[int, str | None]:
        """A state to come back to, as long as nothing goes out."""
        return len(self.pieces), self.behind

    def back_to(self, mark: tuple[int, str | None]) -> None:
        """What has been put since is dropped."""
        del self.pieces[mark[0] :]
        self.behind = mark[1]
        self.bytes = sum(map(len, self.pieces))
