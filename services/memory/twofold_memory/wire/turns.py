"""Open turns on the wire."""

from collections.abc import Sequence
from datetime import timedelta
from hashlib import sha256

from google.protobuf.duration_pb2 import Duration

from twofold.memory.v1 import message_pb2
from twofold.memory.v1 import turn_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory import tokens
from twofold_memory.encoding import waiting_entries_of
from twofold_memory.open_turns import (
    BEGUN_BYTES_MAX,
    BEGUN_MESSAGES_MAX,
    LEASE_DEFAULT,
    LEASE_MAX,
    PARTIAL_BYTES_MAX,
    PARTIAL_MESSAGES_MAX,
    WAIT_DEFAULT,
    WAIT_MAX,
    Answer,
    Begun,
    Ended,
    Heartbeat,
    Opening,
    OpenTurn,
    Policy,
)
from twofold_memory.threads import TURN_BYTES_MAX, TURN_MESSAGES_MAX, KeptTurn, NewMessage, NewTurn, ThreadKey
from twofold_memory.wire.messages import given_usage, messages_of, new_messages, thread_key

_HOLDER_BYTES_MAX = 255
_REASON_BYTES_MAX = 1024
_FENCE_MAX = 2**63 - 1
_POLICIES = {
    pb.TURN_POLICY_UNSPECIFIED: Policy.REJECT,
    pb.TURN_POLICY_REJECT: Policy.REJECT,
    pb.TURN_POLICY_QUEUE: Policy.QUEUE,
    pb.TURN_POLICY_TAKE_OVER: Policy.TAKE_OVER,
}

Named = pb.HeartbeatTurnRequest | pb.CommitTurnRequest | pb.AbortTurnRequest


def opening(request: pb.BeginTurnRequest) -> Opening:
    """The turn that is to be opened."""
    key = thread_key(request.workspace_id, request.thread_id)
    user_id = fields.optional_identifier(request.user_id, "user_id")
    turn_id = fields.optional_identifier(request.request_id, "request_id") or fields.new_id()
    if not request.messages:
        raise InvalidField("messages", "is required")
    messages, body_hash, size = _messages(
        request.messages, b"begin", "messages", count_max=BEGUN_MESSAGES_MAX, bytes_max=BEGUN_BYTES_MAX
    )
    policy = _POLICIES.get(request.policy)
    if policy is None:
        raise InvalidField("policy", "must be one of the policies of the contract")
    return Opening(
        NewTurn(key, user_id, turn_id, body_hash, messages, size),
        fields.line(request.holder, "holder", bytes_max=_HOLDER_BYTES_MAX),
        _lease(request) or LEASE_DEFAULT,
        policy,
        fields.span(request.queue_wait, "queue_wait", most=WAIT_MAX) if request.HasField("queue_wait") else WAIT_DEFAULT,
    )


def heartbeat(request: pb.HeartbeatTurnRequest) -> Heartbeat:
    """The sign of life."""
    key, turn_id, fence = _name(request)
    partial, _, size = _partial(request.partial_messages, b"")
    return Heartbeat(key, turn_id, fence, _lease(request), partial or None, size)


def commit(request: pb.CommitTurnRequest) -> Answer:
    """The whole answer."""
    key, turn_id, fence = _name(request)
    usage = given_usage(request.usage if request.HasField("usage") else None)
    if not request.response_messages:
        raise InvalidField("response_messages", "is required")
    messages, body_hash, size = _messages(
        request.response_messages,
        repr(("commit", fence, usage, request.interrupted)).encode(),
        "response_messages",
        count_max=TURN_MESSAGES_MAX,
        bytes_max=TURN_BYTES_MAX,
    )
    return Answer(key, turn_id, fence, messages, body_hash, size, usage, request.interrupted)


def abort(request: pb.AbortTurnRequest) -> Answer:
    """What there is of an answer."""
    key, turn_id, fence = _name(request)
    usage = given_usage(request.usage if request.HasField("usage") else None)
    reason = fields.line(request.reason, "reason", bytes_max=_REASON_BYTES_MAX)
    partial, body_hash, size = _partial(request.partial_messages, repr(("abort", fence, usage, reason)).encode())
    return Answer(key, turn_id, fence, partial or None, body_hash, size, usage, True, reason)


def begin_response(opening: Opening, begun: Begun | Ended) -> pb.BeginTurnResponse:
    """The turn as it is."""
    key = opening.turn.key
    if isinstance(begun, Ended):
        kept = begun.kept
        return pb.BeginTurnResponse(
            turn_id=begun.turn_id,
            state=pb.TURN_STATE_INTERRUPTED if begun.interrupted else pb.TURN_STATE_COMMITTED,
            thread_token=tokens.seal(key, kept.epoch, kept.last_seq, begun.turn_id),
            duplicate=True,
            first_seq=kept.first_seq,
            last_seq=kept.last_seq,
        )
    return pb.BeginTurnResponse(
        turn_id=begun.open.turn.turn_id,
        state=pb.TURN_STATE_OPEN,
        fence=begun.open.fence,
        lease_expire_time=fields.timestamp(begun.open.lease_until),
        thread_token=tokens.seal(key, begun.epoch, begun.last_seq),
        duplicate=begun.duplicate,
    )


def commit_response(answer: Answer, kept: KeptTurn) -> pb.CommitTurnResponse:
    """Where the turn stands."""
    return pb.CommitTurnResponse(
        first_seq=kept.first_seq,
        last_seq=kept.last_seq,
        duplicate=kept.duplicate,
        thread_token=tokens.seal(answer.key, kept.epoch, kept.last_seq, answer.turn_id),
        create_time=fields.timestamp(kept.created_at),
    )


def abort_response(answer: Answer, kept: KeptTurn) -> pb.AbortTurnResponse:
    """Where the turn stands."""
    return pb.AbortTurnResponse(
        first_seq=kept.first_seq,
        last_seq=kept.last_seq,
        duplicate=kept.duplicate,
        thread_token=tokens.seal(answer.key, kept.epoch, kept.last_seq, answer.turn_id),
        create_time=fields.timestamp(kept.created_at),
    )


def open_turn_response(found: OpenTurn) -> pb.GetOpenTurnResponse:
    """The turn that is open."""
    turn_id = found.turn.turn_id
    return pb.GetOpenTurnResponse(
        turn_id=turn_id,
        holder=found.holder,
        begin_time=fields.timestamp(found.began_at),
        lease_expire_time=fields.timestamp(found.lease_until),
        messages=messages_of(waiting_entries_of(found.turn.messages, turn_id)),
        partial_messages=messages_of(waiting_entries_of(found.partial, turn_id)),
        waiting_count=found.waiting,
    )


def _name(request: Named) -> tuple[ThreadKey, str, int]:
    key = thread_key(request.workspace_id, request.thread_id)
    turn_id = fields.identifier(request.turn_id, "turn_id")
    return key, turn_id, fields.whole(request.fence, "fence", least=1, most=_FENCE_MAX)


def _lease(request: pb.BeginTurnRequest | pb.HeartbeatTurnRequest) -> timedelta | None:
    given: Duration | None = request.lease_duration if request.HasField("lease_duration") else None
    return None if given is None else fields.span(given, "lease_duration", most=LEASE_MAX)


def _partial(given: Sequence[message_pb2.Message], besides: bytes) -> tuple[list[NewMessage], bytes, int]:
    return _messages(given, besides, "partial_messages", count_max=PARTIAL_MESSAGES_MAX, bytes_max=PARTIAL_BYTES_MAX)


def _messages(
    given: Sequence[message_pb2.Message], besides: bytes, field: str, *, count_max: int, bytes_max: int
) -> tuple[list[NewMessage], bytes, int]:
    if len(given) > count_max:
        raise InvalidField(field, f"are {len(given)}, at most {count_max} are allowed")
    named = [(f"{field}[{index}]", message) for index, message in enumerate(given)]
    # The hash of what is given besides has a length of its own: no two pairs are the same bytes.
    return new_messages(named, sha256(besides).digest(), field, bytes_max)
