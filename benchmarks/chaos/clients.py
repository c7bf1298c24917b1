"""Clients under faults: they append, repeat, read, delete, and write down what they saw."""

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from benchmarks.chaos.history import Attempt, Deletion, Edit, History, Promise, Read, Shown, Texts, Token, Told, edited
from twofold import refusals
from twofold.errors.v1.reason_pb2 import Reason
from twofold.memory.v1 import conversation_pb2 as pb
from twofold.memory.v1 import message_pb2
from twofold.memory.v1.conversation_pb2_grpc import ConversationServiceStub
from twofold.memory.v1.revision_pb2 import EditMessageRequest, NewContent
from twofold.memory.v1.revision_pb2_grpc import RevisionServiceStub

WORKSPACE = "chaos"
# Nobody is stopped for so long: who then has no answer was forgotten.
CALL_S = 20.0
OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
]
_ATTEMPTS = 12
_PAUSE_S = 0.05
_THINKING_S = 0.02
_OLD_MAX = 200
_EDITABLE_MAX = 8
_WINDOWS = (2, 6, 20, 100)
_SIZES = (1, 2, 2, 2, 3)
_FRESH_S = 0.1
_BEGUN_MAX = 2
_GIVE_UP_S = (0.001, 0.08)

_Code = grpc.StatusCode
_SOME = {
    message_pb2.COMPLETENESS_COMPLETE: Promise.COMPLETE,
    message_pb2.COMPLETENESS_COMMITTED_ONLY: Promise.COMMITTED_ONLY,
}
# Refusals after which this attempt has left nothing behind.
_NOTHING_KEPT = (_Code.ABORTED, _Code.ALREADY_EXISTS, _Code.FAILED_PRECONDITION, _Code.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class Appetite:
    """How often a client does what; of an append, how often it is of which sort."""

    appends: float = 0.45
    repeats: float = 0.12
    deletions: float = 0.008
    edits: float = 0.015
    # A thread that another client is beginning at the same moment.
    fresh: float = 0.03
    journaled: float = 0.12
    with_token: float = 0.4
    given_up: float = 0.1
    other_payload: float = 0.1


@dataclass(frozen=True, slots=True)
class _Turn:
    thread: str
    turn_id: str
    texts: Texts
    journaled: bool
    after: str
    after_token: bytes


@dataclass
class _Thread:
    """What a client knows of a thread; `numbered` are its own messages there whose numbers it knows."""

    name: str
    tokens: list[tuple[bytes, Token]] = field(default_factory=list)
    numbered: list[tuple[int, str]] = field(default_factory=list)
    deleted: bool = False


class Worker:
    """What is called of one worker."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.conversations = ConversationServiceStub(channel)
        self.revisions = RevisionServiceStub(channel)


class Client:
    """One client with threads of its own and some that it shares. Every call goes to any of the workers."""

    def __init__(
        self,
        workers: Sequence[Worker],
        history: History,
        chance: random.Random,
        shared: Sequence[str],
        own: str,
        appetite: Appetite | None = None,
    ) -> None:
        self._workers = workers
        self._history = history
        self._chance = chance
        self._shared = [_Thread(name) for name in shared]
        self._fresh = f"{shared[0]}-fresh"
        self._own = own
        self._appetite = appetite or Appetite()
        self._doomed = 0
        self._private = [_Thread(own), _Thread(f"{own}-doomed-0")]
        self._begun: list[_Thread] = []
        self._old: list[_Turn] = []
        self._payloads: dict[str, set[Texts]] = {}
        self.calls = 0

    async def run(self, until: float) -> None:
        """Works until a time of the event loop's clock."""
        chance, appetite = self._chance, self._appetite
        while _now() < until:
            await asyncio.sleep(chance.uniform(0, _THINKING_S))
            thread = chance.choice(self._shared + self._private + self._begun)
            doings: list[tuple[float, Callable[[], Awaitable[None]]]] = [
                (appetite.appends, partial(self._say, thread)),
                (appetite.repeats, self._repeat),
                (appetite.deletions, self._delete),
                (appetite.edits, partial(self._edit, thread)),
                (appetite.fresh, self._begin),
            ]
            drawn = chance.random()
            for often, doing in doings:
                drawn -= often
                if drawn < 0:
                    await doing()
                    break
            else:
                await self._read(thread)

    # Appends ---------------------------------------------------------------------------------------------

    async def _say(self, thread: _Thread) -> None:
        chance = self._chance
        turn_id = str(uuid.UUID(int=chance.getrandbits(128)))
        texts = tuple(f"{index} of {turn_id}" for index in range(chance.choice(_SIZES)))
        token, known = b"", Token("", 0)
        if thread.tokens and chance.random() < self._appetite.with_token:
            token, known = thread.tokens[-1]
        turn = _Turn(thread.name, turn_id, texts, chance.random() < self._appetite.journaled, known.turn_id, token)
        await self._insist(turn, thread, patient=chance.random() >= self._appetite.given_up)
        self._old.append(turn)
        if len(self._old) > _OLD_MAX:
            self._old.pop(chance.randrange(_OLD_MAX))

    async def _begin(self) -> None:
        """Says something in a conversation that others may be beginning at this very moment, and stays in it for a while."""
        name = f"{self._fresh}-{_now() // _FRESH_S:.0f}"
        thread = next((known for known in self._begun if known.name == name), _Thread(name))
        if thread not in self._begun:
            self._begun = [*self._begun, thread][-_BEGUN_MAX:]
        await self._say(thread)

    async def _repeat(self) -> None:
        """Says something again, as somebody does who did not hear the answer; or something else under its id."""
        if not self._old:
            return
        turn = self._chance.choice(self._old)
        if self._chance.random() < self._appetite.other_payload:
            turn = _Turn(turn.thread, turn.turn_id, tuple(f"other {text}" for text in turn.texts), False, "", b"")
        thread = next(
            (known for known in self._shared + self._private + self._begun if known.name == turn.thread),
            _Thread(turn.thread),
        )
        await self._insist(turn, thread, patient=self._chance.random() >= self._appetite.given_up)

    async def _insist(self, turn: _Turn, thread: _Thread, *, patient: bool) -> None:
        """Asks until there is an answer that is final, or patience ends."""
        self._payloads.setdefault(turn.turn_id, set()).add(turn.texts)
        for _ in range(_ATTEMPTS):
            if not await self._attempt(turn, thread, patient=patient):
                return
            await asyncio.sleep(_PAUSE_S * (1 + self._chance.random()))

    async def _attempt(self, turn: _Turn, thread: _Thread, *, patient: bool) -> bool:
        """One call; whether it should be repeated."""
        number = self._chance.randrange(len(self._workers))
        timeout = CALL_S if patient else self._chance.uniform(*_GIVE_UP_S)
        request = request_of(turn.thread, turn.turn_id, turn.texts, journaled=turn.journaled, after_token=turn.after_token)
        sent = _now()
        self.calls += 1
        try:
            answer = await self._workers[number].conversations.AppendTurn(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            gave_up = not patient and error.code() in (_Code.DEADLINE_EXCEEDED, _Code.CANCELLED)
            told = Told.UNKNOWN if gave_up else _told(error)
            answered = None if gave_up else _now()
            self._history.attempts.append(
                Attempt(turn.thread, turn.turn_id, turn.texts, number, sent, answered, told, after=turn.after)
            )
            return not gave_up and self._is_to_be_repeated(error, turn, thread)
        journaled = answer.durability == message_pb2.DURABILITY_JOURNALED
        self._history.attempts.append(
            Attempt(
                turn.thread,
                turn.turn_id,
                turn.texts,
                number,
                sent,
                _now(),
                Told.JOURNALED if journaled else Told.COMMITTED,
                None if journaled else (answer.first_seq, answer.last_seq),
                answer.order_unverified,
                turn.after,
            )
        )
        thread.tokens.append((answer.thread_token, Token(turn.turn_id, answer.last_seq)))
        if not journaled:
            thread.numbered.append((answer.first_seq, turn.texts[0]))
        return False

    def _is_to_be_repeated(self, error: grpc.aio.AioRpcError, turn: _Turn, thread: _Thread) -> bool:
        code, why = error.code(), refusals.reason(error)
        if code in (_Code.UNAVAILABLE, _Code.RESOURCE_EXHAUSTED) or (
            code is _Code.ABORTED and why != Reason.REASON_HISTORY_CHANGED
        ):
            return True
        if code is _Code.DEADLINE_EXCEEDED:
            self._history.stuck.append((turn.thread, f"an append of {turn.turn_id}"))
        elif not (
            (code is _Code.ALREADY_EXISTS and len(self._payloads[turn.turn_id]) > 1)
            or (code is _Code.FAILED_PRECONDITION and why == Reason.REASON_TURN_DEAD)
            or (code in (_Code.FAILED_PRECONDITION, _Code.ABORTED) and self._was_deleted(turn.thread))
        ):
            self._refused(turn.thread, f"an append of {turn.turn_id}", error)
        return False

    def _was_deleted(self, thread: str) -> bool:
        return any(gone.thread == thread for gone in self._history.deletions)

    def _refused(self, thread: str, what: str, error: grpc.aio.AioRpcError) -> None:
        self._history.refused.append((thread, f"{what}: {error.code().name} {error.details()}"))

    # Deletions -------------------------------------------------------------------------------------------

    async def _delete(self) -> None:
        """Deletes the conversation that is there for this, and begins another."""
        thread = self._private[1]
        if thread.deleted or not thread.tokens:
            return
        thread.deleted = True
        place = len(self._history.deletions)
        sent = _now()
        self._history.deletions.append(Deletion(thread.name, sent, None))
        request = pb.DeleteConversationRequest(
            workspace_id=WORKSPACE, thread_id=thread.name, request_id=f"delete-{thread.name}"
        )
        for _ in range(_ATTEMPTS):
            self.calls += 1
            try:
                await self._chance.choice(self._workers).conversations.DeleteConversation(request, timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is _Code.DEADLINE_EXCEEDED:
                    self._history.stuck.append((thread.name, "a deletion"))
                elif error.code() is _Code.NOT_FOUND:
                    break  # all that was said in it still waits: there is nothing to delete yet
                elif error.code() not in (_Code.UNAVAILABLE, _Code.ABORTED, _Code.RESOURCE_EXHAUSTED):
                    self._refused(thread.name, "a deletion", error)
                    break
                await asyncio.sleep(_PAUSE_S)
            else:
                self._history.deletions[place] = Deletion(thread.name, sent, _now())
                break
        self._doomed += 1
        self._private[1:] = [_Thread(f"{self._own}-doomed-{self._doomed}"), *self._private[1:]][:4]

    # Edits -----------------------------------------------------------------------------------------------

    async def _edit(self, thread: _Thread) -> None:
        """Lets one of its own messages say something else."""
        if thread.deleted or not thread.numbered:
            return
        seq, first = self._chance.choice(thread.numbered[-_EDITABLE_MAX:])
        by = uuid.UUID(int=self._chance.getrandbits(128)).hex[:12]
        place, sent = len(self._history.edits), _now()
        self._history.edits.append(Edit(thread.name, seq, edited(first, by), sent, None))
        request = EditMessageRequest(
            workspace_id=WORKSPACE,
            thread_id=thread.name,
            seq=seq,
            content=NewContent(text=edited(first, by)),
            request_id=f"edit-{by}",
        )
        for _ in range(_ATTEMPTS):
            self.calls += 1
            try:
                await self._chance.choice(self._workers).revisions.EditMessage(request, timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is _Code.DEADLINE_EXCEEDED:
                    self._history.stuck.append((thread.name, "an edit"))
                if error.code() not in (_Code.UNAVAILABLE, _Code.ABORTED, _Code.RESOURCE_EXHAUSTED):
                    if error.code() is not _Code.DEADLINE_EXCEEDED and not self._was_deleted(thread.name):
                        self._refused(thread.name, f"an edit of {seq}", error)
                    return
                await asyncio.sleep(_PAUSE_S)
            else:
                self._history.edits[place] = Edit(thread.name, seq, edited(first, by), sent, _now())
                return

    # Reads -----------------------------------------------------------------------------------------------

    async def _read(self, thread: _Thread) -> None:
        chance = self._chance
        number = chance.randrange(len(self._workers))
        token, drawn = None, chance.random()
        request = pb.ReadWindowRequest(
            workspace_id=WORKSPACE, thread_id=thread.name, message_count_max=chance.choice(_WINDOWS)
        )
        if drawn < 0.4 and thread.tokens:
            request.thread_token, token = chance.choice(thread.tokens[-5:])
            request.read_level = message_pb2.READ_LEVEL_AT_LEAST
        elif drawn > 0.85:
            request.read_level = message_pb2.READ_LEVEL_ANY
        self.calls += 1
        seen = await read_window(self._workers[number], number, request, self._history, token)
        if seen is not None and seen[1].messages and seen[0]:
            last = seen[1].messages[-1]
            thread.tokens.append((seen[0], Token(last.turn_id, last.seq)))


async def read_window(
    worker: Worker,
    number: int,
    request: pb.ReadWindowRequest,
    history: History,
    token: Token | None = None,
) -> tuple[bytes, Read] | None:
    """Reads and writes down what was seen; the answer's token and what it showed, None if there was no answer."""
    sent = _now()
    try:
        window = await worker.conversations.ReadWindow(request, timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        if error.code() is _Code.NOT_FOUND:
            history.reads.append(Read(request.thread_id, number, sent, _now(), Promise.MISSING, 0, ()))
        elif error.code() is _Code.DEADLINE_EXCEEDED:
            history.stuck.append((request.thread_id, "a read"))
        elif not (
            error.code() in (_Code.UNAVAILABLE, _Code.RESOURCE_EXHAUSTED)
            or (error.code() is _Code.ABORTED and any(gone.thread == request.thread_id for gone in history.deletions))
        ):
            history.refused.append((request.thread_id, f"a read: {error.code().name} {error.details()}"))
        return None
    shown = tuple(Shown(message.seq, message.turn_id, message.content) for message in window.messages)
    promise = _SOME.get(window.completeness, Promise.SOME)
    read = Read(request.thread_id, number, sent, _now(), promise, request.message_count_max, shown, token, window.as_of_seq)
    history.reads.append(read)
    return window.thread_token, read


def request_of(
    thread: str, turn_id: str, texts: Texts, *, journaled: bool = False, after_token: bytes = b""
) -> pb.AppendTurnRequest:
    """The request that says this."""
    roles = (message_pb2.ROLE_USER, message_pb2.ROLE_ASSISTANT)
    return pb.AppendTurnRequest(
        workspace_id=WORKSPACE,
        thread_id=thread,
        request_id=turn_id,
        messages=[message_pb2.Message(role=roles[place % 2], content=text) for place, text in enumerate(texts)],
        durability=message_pb2.DURABILITY_JOURNALED if journaled else message_pb2.DURABILITY_UNSPECIFIED,
        after_token=after_token,
    )


def _told(error: grpc.aio.AioRpcError) -> Told:
    """What a refusal says of the turn."""
    if error.code() in _NOTHING_KEPT or _outcome(error) == "NOT_STORED":
        return Told.NOT_STORED
    return Told.UNKNOWN


def _outcome(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads what an aio error has
    for packed in status.details if status is not None else ():
        info = ErrorInfo()
        if packed.Unpack(info):
            return str(info.metadata.get("outcome", ""))
    return ""


def _now() -> float:
    return asyncio.get_running_loop().time()
