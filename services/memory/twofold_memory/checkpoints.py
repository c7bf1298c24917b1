"""Checkpoints: states of agents in lines that grow at their heads. The newest is the one committed last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from twofold_chassis.refusals import Aborted, AlreadyExists, NotFound, Reason

DATA_BYTES_MAX = 3 * 1024 * 1024
KEPT_MAX = 100_000
DELETED_AT_ONCE = 500


class CheckpointUnknown(NotFound):
    """There is no such checkpoint (any more), or the line has none at all."""

    reason = Reason.REASON_CHECKPOINT_UNKNOWN


class CheckpointExists(AlreadyExists):
    """The conversation has a checkpoint with this id."""

    reason = Reason.REASON_RECORD_EXISTS


class HeadMoved(Aborted):
    """The line has another head than the expected one."""

    reason = Reason.REASON_HEAD_MOVED


@dataclass(frozen=True, slots=True)
class NewCheckpoint:
    """A state to be kept. `parent_id` None: it came from the head of the line."""

    checkpoint_id: str
    line: str
    parent_id: str | None
    data: bytes
    content_type: str
    pinned: bool
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state as it is stored; `data` is None where it was not asked for."""

    checkpoint_id: str
    line: str
    version: int
    parent_id: str
    data: bytes | None
    data_bytes: int
    content_type: str
    pinned: bool
    metadata: Mapping[str, str]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class CheckpointPage:
    """Some checkpoints, and whether there are more behind the last one."""

    checkpoints: Sequence[Checkpoint]
    more: bool


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many were deleted, and whether there are more to delete."""

    count: int
    more: bool


def expect(head_id: str | None, expected_id: str | None) -> None:
    """Refuses who expects another head; None: that there is no line. Raises HeadMoved."""
    if head_id == expected_id:
        return
    there = f"is {head_id!r}" if head_id else "is not there: the line has no checkpoints"
    wanted = f"not {expected_id!r}" if expected_id else "not a line without checkpoints"
    raise HeadMoved(f"the head of the line {there}, {wanted}", head_id=head_id or "")


def unknown(checkpoint_id: str | None) -> CheckpointUnknown:
    """The refusal for a checkpoint that is not there; None: the newest one of a line that has none."""
    if checkpoint_id is None:
        return CheckpointUnknown("the line has no checkpoints")
    return CheckpointUnknown(f"the conversation has no checkpoint {checkpoint_id!r}", checkpoint_id=checkpoint_id)
