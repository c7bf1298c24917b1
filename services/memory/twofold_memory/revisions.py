"""Revisions: messages that are edited, redacted, deleted or taken back, and what they were before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import NamedTuple

from twofold_chassis.refusals import Aborted, FailedPrecondition, InvalidField, Reason, ResourceExhausted
from twofold_memory.threads import DELETED, MESSAGE_BYTES_MAX, REDACTED, TURN_BYTES_MAX, Entry, Status, ThreadKey

REVISIONS_MAX = 1_000
# A message that was edited as often as it can be can still be redacted and deleted.
_REVISIONS_SPARE = 10
REASON_BYTES_MAX = 1_024
REPLACEMENT_BYTES_MAX = 1_024


class MessageDeleted(FailedPrecondition):
    """The message is deleted or redacted, and not to be changed like this any more."""

    reason = Reason.REASON_MESSAGE_DELETED


class RevisionMismatch(Aborted):
    """The message has another revision than expected, or another turn is the last one: somebody else was faster."""

    reason = Reason.REASON_VERSION_MISMATCH


class TooManyRevisions(ResourceExhausted):
    """The message was changed too often."""

    reason = Reason.REASON_TOO_MANY


class Kind(Enum):
    """What a change was; twofold.memory.v1.RevisionKind."""

    EDIT = 1
    REDACT = 2
    DELETE = 3
    POP = 4


@dataclass(frozen=True, slots=True)
class Body:
    """What can change of a message. `rest` is its encoded remainder, see threads.NewMessage."""

    role: int
    content: str | None
    rest: bytes
    token_count: int | None
    status: Status
    revision: int

    @property
    def bytes(self) -> int:
        """Bytes of content and rest."""
        return len((self.content or "").encode()) + len(self.rest)


@dataclass(frozen=True, slots=True)
class Revising:
    """A change of one message: which kind, why, how, and which revision it must have now (None: any)."""

    kind: Kind
    reason: str
    changed: Callable[[Body], Body]
    expected: int | None = None

    def applied(self, body: Body) -> Body:
        """The body with its change and its next revision. Raises what `changed` does, RevisionMismatch, TooManyRevisions."""
        if self.expected is not None and self.expected != body.revision:
            raise RevisionMismatch(
                f"the revision is {body.revision}, not {self.expected}: read the message again, then decide",
                version=str(body.revision),
            )
        most = REVISIONS_MAX + (0 if self.kind is Kind.EDIT else _REVISIONS_SPARE)
        if body.revision >= most:
            raise TooManyRevisions(f"the message was changed {body.revision} times, more often it cannot")
        return replace(self.changed(body), revision=body.revision + 1)


def edited(body: Body, content: str | None, rest: bytes, token_count: int | None) -> Body:
    """The body with other content. Raises MessageDeleted, InvalidField."""
    if body.status in (DELETED, REDACTED):
        raise MessageDeleted("the message is deleted or redacted and cannot be edited")
    if len(rest) > MESSAGE_BYTES_MAX:
        raise InvalidField("content", f"makes {len(rest)} bytes besides text, at most {MESSAGE_BYTES_MAX} are allowed")
    return replace(body, content=content, rest=rest, token_count=token_count)


def redacted(body: Body, replacement: str | None, rest: bytes) -> Body:
    """The body without its content; `rest` is what remains of its remainder. Raises MessageDeleted."""
    if body.status == DELETED:
        if replacement is not None:
            raise MessageDeleted("the message is deleted: nothing can stand in its place")
        return replace(body, content=None, rest=b"", token_count=None)
    return replace(body, content=replacement, rest=rest, token_count=None, status=REDACTED)


def deleted(body: Body) -> Body:
    """The body's place. Raises MessageDeleted."""
    if body.status == DELETED:
        raise MessageDeleted("the message is deleted")
    return replace(body, content=None, rest=b"", token_count=None, status=DELETED)


def check_turn(size: int, former: Body, body: Body) -> None:
    """Refuses a change that makes its turn, which had `size` bytes, larger than a turn may be."""
    if size - former.bytes + body.bytes > TURN_BYTES_MAX:
        raise InvalidField("content", f"makes the turn larger than {TURN_BYTES_MAX} bytes")


@dataclass(frozen=True, slots=True)
class Revision:
    """One change of a message. `former` is the message as it was, as a frame; None once it is redacted."""

    revision: int
    kind: int
    former: Entry | None
    actor: str
    reason: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RevisionPage:
    """Some revisions in order, and whether there are more."""

    revisions: Sequence[Revision]
    more: bool


@dataclass(frozen=True, slots=True)
class Revised:
    """What a change leaves: the message's revision, or the turn that was taken back, and up to where the thread goes."""

    key: ThreadKey
    epoch: int
    last_seq: int
    revision: int = 0
    turn_id: str = ""


Answer = Callable[[Revised], bytes]


class PopAnswer(NamedTuple):
    """How a turn that was taken back is told: what is kept for repeats, which must hold no content, is made whole each time.

    `turn_id` reads it in what is kept, `whole` adds the messages.
    """

    kept: Answer
    turn_id: Callable[[bytes], str]
    whole: Callable[[bytes, Sequence[Entry]], bytes]
