"""Checkpoints on the wire."""

from collections.abc import Sequence

from twofold.memory.v1 import checkpoint_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory.checkpoints import (
    DATA_BYTES_MAX,
    KEPT_MAX,
    Checkpoint,
    CheckpointPage,
    Deleted,
    NewCheckpoint,
)

_LINE_BYTES_MAX = 255


def new_checkpoint(request: pb.PutCheckpointRequest) -> NewCheckpoint:
    """The state that is to be kept."""
    if not request.HasField("checkpoint"):
        raise InvalidField("checkpoint", "is required")
    given = request.checkpoint
    if len(given.data) > DATA_BYTES_MAX:
        raise InvalidField("checkpoint.data", f"has {len(given.data)} bytes, at most {DATA_BYTES_MAX} are allowed")
    return NewCheckpoint(
        checkpoint_id=fields.optional_identifier(given.checkpoint_id, "checkpoint.checkpoint_id") or fields.new_id(),
        line=line(given.line, "checkpoint.line"),
        parent_id=fields.optional_identifier(given.parent_id, "checkpoint.parent_id"),
        data=given.data,
        content_type=fields.line(given.content_type, "checkpoint.content_type", bytes_max=255),
        pinned=given.pinned,
        metadata=fields.labels(given.metadata, "checkpoint.metadata"),
    )


def line(value: str, field: str) -> str:
    """The name of a line, which may be empty."""
    return fields.line(value, field, bytes_max=_LINE_BYTES_MAX)


def keep_newest(request: pb.DeleteCheckpointsRequest) -> int:
    """How many are kept."""
    return fields.whole(request.keep_newest, "keep_newest", least=1, most=KEPT_MAX)


def message(checkpoint: Checkpoint) -> pb.Checkpoint:
    """A checkpoint as it goes out."""
    return pb.Checkpoint(
        checkpoint_id=checkpoint.checkpoint_id,
        line=checkpoint.line,
        parent_id=checkpoint.parent_id,
        data=checkpoint.data or b"",
        content_type=checkpoint.content_type,
        metadata=checkpoint.metadata,
        pinned=checkpoint.pinned,
        version=checkpoint.version,
        data_bytes=checkpoint.data_bytes,
        create_time=fields.timestamp(checkpoint.created_at),
    )


def kept(checkpoint: Checkpoint) -> pb.Checkpoint:
    """A checkpoint in the answer to a change, without what the caller has and erasures look for: answers are remembered."""
    told = message(checkpoint)
    told.ClearField("data")
    told.ClearField("metadata")
    return told


def list_response(page: CheckpointPage, query: Sequence[object]) -> pb.ListCheckpointsResponse:
    """A page of checkpoints."""
    following = fields.page_token(query, [page.checkpoints[-1].version]) if page.more else ""
    return pb.ListCheckpointsResponse(checkpoints=map(message, page.checkpoints), next_page_token=following)


def delete_response(deleted: Deleted) -> pb.DeleteCheckpointsResponse:
    """What was deleted."""
    return pb.DeleteCheckpointsResponse(deleted_count=deleted.count, more=deleted.more)
