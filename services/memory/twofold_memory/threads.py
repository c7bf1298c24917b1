"""Threads and turns: the nouns of what was said, and the reasons to refuse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Literal, NamedTuple

from twofold_chassis.refusals import Aborted, AlreadyExists, FailedPrecondition, NotFound, Reason, ResourceExhausted

MESSAGE_BYTES_MAX = 1024 * 1024
TURN_MESSAGES_MAX = 500
TURN_BYTES_MAX = 3 * 1024 * 1024
ANSWER_BYTES_MAX = 3 * 1024 * 1024
# More than the largest turn or answer.
WINDOW_BYTES_MAX = 4 * 1024 * 1024
# twofold.memory.v1.ROLE_TOOL: the message is the result of a tool call.
ROLE_RESULT = 4


class ConversationUnknown(NotFound):
    """No such conversation, or it is another user's, or it is deleted: one answer for all three."""

    reason = Reason.REASON_CONVERSATION_UNKNOWN


class TurnUnknown(NotFound):
    """The conversation has no turn with this id."""

    reason = Reason.REASON_TURN_UNKNOWN


class MessageUnknown(NotFound):
    """The conversation has no message with this number (any more)."""

    reason = Reason.REASON_MESSAGE_UNKNOWN


class ConversationExists(AlreadyExists):
    """The thread id is taken."""

    reason = Reason.REASON_CONVERSATION_EXISTS


class ConversationDeleted(FailedPrecondition):
    """The conversation is deleted and takes no messages."""

    reason = Reason.REASON_CONVERSATION_DELETED


class ConversationErased(FailedPrecondition):
    """The conversation is erased; its id stays taken."""

    reason = Reason.REASON_CONVERSATION_ERASED


class TurnDead(FailedPrecondition):
    """The turn was journaled and could not be stored."""

    reason = Reason.REASON_TURN_DEAD


class TurnOnItsWay(Aborted):
    """The turn that this one is to stand behind is not in Postgres yet."""

    reason = Reason.REASON_TURN_ON_ITS_WAY


class JournalFull(ResourceExhausted):
    """Too much waits for Postgres."""

    reason = Reason.REASON_JOURNAL_FULL


class ThreadKey(NamedTuple):
    """Which thread: its workspace and its id there."""

    workspace_id: str
    thread_id: str


def unknown(key: ThreadKey) -> ConversationUnknown:
    """The refusal for a thread that the caller may not know of."""
    return ConversationUnknown(f"no conversation {key.thread_id!r}", thread_id=key.thread_id)


Status = int
"""twofold.memory.v1.MessageStatus."""
AS_SAID, INTERRUPTED, DELETED, REDACTED = range(4)


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to be stored. `rest` is the encoded remainder: all that is neither role, content nor token count."""

    role: int
    content: str | None
    rest: bytes
    token_count: int | None
    status: Status = AS_SAID

    @property
    def is_result(self) -> bool:
        """Whether it is the result of a tool call."""
        return self.role == ROLE_RESULT


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a turn consumed."""

    input_tokens: int
    output_tokens: int


class Wanted(Enum):
    """What a caller wants to be done before the answer; see Durability in the contract."""

    COMMITTED_IN_TIME = 0
    COMMITTED = 1
    JOURNALED = 2


@dataclass(frozen=True, slots=True)
class NewTurn:
    """Messages to be stored together, once. `payload_hash` tells a retry from another turn under the same id.

    `after` is the turn that it must stand behind. `status` is INTERRUPTED for a turn that did not come to its end.
    """

    key: ThreadKey
    user_id: str | None
    turn_id: str
    payload_hash: bytes
    messages: Sequence[NewMessage]
    bytes: int
    usage: Usage | None = None
    after: str | None = None
    status: Status = AS_SAID


@dataclass(frozen=True, slots=True)
class KeptTurn:
    """A turn as it is stored. `order_unverified`: turns that were accepted before it may stand behind it."""

    first_seq: int
    last_seq: int
    epoch: int
    created_at: datetime
    owner: str | None
    duplicate: bool
    order_unverified: bool = False


@dataclass(frozen=True, slots=True)
class JournaledTurn:
    """A turn that waits in the journal, and has no numbers yet. `weak`: in one that may be evicted."""

    duplicate: bool
    weak: bool = False


Outcome = Literal["STORED", "DUPLICATE", "CONFLICT", "DEAD", "DELETED", "ERASED", "FOREIGN", "AFTER_MISSING", "MISSING"]


Refused = Literal["KEY_CONFLICT", "INVALID", "DELETED", "FOREIGN", "ERASED"]
"""Why a journaled turn is never stored. All but the last are dead letters."""


@dataclass(frozen=True, slots=True)
class Known:
    """A turn id that Postgres knows; a dead one has numbers 0."""

    payload_hash: bytes
    first_seq: int
    last_seq: int
    dead: bool
    created_at: datetime
    order_unverified: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A turn on its way into a batch: whether its thread may have to be made, whether the journal could not be asked for
    turns that wait, and what is wanted."""

    turn: NewTurn
    is_new: bool
    order_unverified: bool = False
    wanted: Wanted = Wanted.COMMITTED_IN_TIME


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of one turn of a batch; `turn` is there for STORED and DUPLICATE."""

    outcome: Outcome
    turn: KeptTurn | None


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """One turn with its messages."""

    entries: Sequence["Entry"]
    epoch: int
    last_seq: int
    usage: Usage | None


class Entry(NamedTuple):
    """A stored message. `seq` is its number, the flags say what a window must know of it.

    `frame` is the message as it stands in an answer: encoded, behind its tag and length.
    """

    seq: int
    starts_turn: bool
    is_result: bool
    frame: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """What Postgres knows of a thread: numbers from 1 to next_seq - 1 are given, in this epoch. Erased means deleted too."""

    next_seq: int
    epoch: int
    owner: str | None
    deleted: bool
    erased: bool = False

    def visible_to(self, user_id: str | None) -> bool:
        """Whether a caller who speaks for this user (None: for nobody in particular) may see the thread."""
        return not self.deleted and may_see(self.owner, user_id)


def may_see(owner: str | None, user_id: str | None) -> bool:
    """A conversation is seen by its user, by callers who speak for nobody, and by all if it is nobody's."""
    return owner is None or user_id is None or owner == user_id


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A thread's head and its newest entries, read in one statement. Entries are in order and end at next_seq - 1.

    There are fewer than asked for if the thread has no more, or if they are more than an answer can hold.
    """

    head: Head
    entries: Sequence[Entry]


class Level(Enum):
    """What must be known of an answer's newness; see ReadLevel in the contract."""

    VERIFIED = 1
    AT_LEAST = 2
    ANY = 3


class Source(Enum):
    """Where an answer came from."""

    L1 = 1
    L2 = 2
    MERGED = 3


class Completeness(Enum):
    """What an answer may be relied on for; see the contract."""

    COMPLETE = 1
    AS_OF = 2
    UNVERIFIED = 3
    COMMITTED_ONLY = 4
    PARTIAL = 5


@dataclass(frozen=True, slots=True)
class Copy:
    """A window as L1 has it: a contiguous run of the thread in this epoch, up to next_seq - 1; perhaps not the newest."""

    epoch: int
    first_seq: int
    next_seq: int
    owner: str | None
    entries: Sequence[Entry]

    def covers(self, count: int) -> bool:
        """Whether it holds the newest `count` messages, or all there are, or as many as an answer can hold."""
        if self.first_seq == 1 or len(self.entries) >= count:
            return True
        return sum(len(entry.frame) for entry in self.entries) > ANSWER_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Window:
    """The newest messages of a thread, those of journaled turns last. `epoch` 0: nothing of it is known to be stored.

    `waiting_turn` is the last of the journaled turns, if there are any.
    """

    entries: Sequence[Entry]
    epoch: int
    as_of_seq: int
    source: Source
    completeness: Completeness
    truncated: bool = False
    waiting_turn: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation without its messages."""

    key: ThreadKey
    user_id: str | None
    title: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    # Number of its newest message.
    message_count: int = 0
    # Of its oldest one: those before went with a conversation that it shared them with.
    first_seq: int = 1
    parent_thread_id: str | None = None
    # The last message that it shares with the conversation it was branched off.
    fork_seq: int = 0
    version: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None
    # Where it stands in lists: when it was last changed, to the minute.
    listed_at: datetime | None = None
