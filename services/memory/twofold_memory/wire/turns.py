"""Open turns on the wire."""

from collections.abc import Sequence
from datetime import timedelta
from hashlib import sha256

from google.protobuf.duration_pb2 import Duration

from twofold.memory.v1 import conversation_pb2, message_pb2
from twofold.memory.v1 import turn_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory import tokens
from twofold_memory.encoding import waiting_entries_of
from twofold_memory.open_turns import (
    ACKNOWLEDGED_MAX,
    BEGUN_BYTES_MAX,
    BEGUN_MESSAGES_MAX,
    LEASE_DEFAULT,
    LEASE_MAX,
    OWED_AGE_DEFAULT,
    OWED_AGE_MAX,
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
    Owed,
    OwedUsage,
    Policy,
    TurnName,
)
from twofold_memory.threads import TURN_BYTES_MAX, TURN_MESSAGES_MAX, KeptTurn, NewMessage, NewTurn, ThreadKey, Usage
from twofold_memory.wire.messages import given_usage, messages_of, new_messages, thread_key

_HOLDER_BYTES_MAX = 255
_REASON_BYTES_MAX = 1024
_FENCE_MAX = 2**63 - 1
_OWED = "owed usage"
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
    owed = _owed(request, usage)
    if not request.response_messages:
        raise InvalidField("response_messages", "is required")
    messages, body_hash, size = _messages(
        request.response_messages,
        repr(("commit", fence, usage, request.interrupted, owed)).encode(),
        "response_messages",
        count_max=TURN_MESSAGES_MAX,
        bytes_max=TURN_BYTES_MAX,
    )
    return Answer(key, turn_id, fence, messages, body_hash, size, usage, request.interrupted, owed=owed)


def abort(request: pb.AbortTurnRequest) -> Answer:
    """What there is of an answer."""
    key, turn_id, fence = _name(request)
    usage = given_usage(request.usage if request.HasField("usage") else None)
    owed = _owed(request, usage)
    reason = fields.line(request.reason, "reason", bytes_max=_REASON_BYTES_MAX)
    partial, body_hash, size = _partial(request.partial_messages, repr(("abort", fence, usage, reason, owed)).encode())
    return Answer(key, turn_id, fence, partial or None, body_hash, size, usage, True, reason, owed)


def wanted_owed(request: pb.ListUnrecordedUsageRequest) -> tuple[timedelta, TurnName | None, int]:
    """Which usage is listed: owed for how long, from behind which turn on, and how many of them."""
    given = request.min_age if request.HasField("min_age") else None
    min_age = OWED_AGE_DEFAULT if given is None else fields.span(given, "min_age", most=OWED_AGE_MAX)
    place = fields.page_place(request.page_token, _OWED, str, str, str)
    after = None if place is None else TurnName(ThreadKey(place[0], place[1]), place[2])
    return min_age, after, fields.page_size(request.page_size)


def owed_response(found: Sequence[OwedUsage], size: int) -> pb.ListUnrecordedUsageResponse:
    """A page; `found` has one more than `size` if there is another page."""
    page, following = found[:size], ""
    if len(found) > size:
        following = fields.page_token(_OWED, [*page[-1].turn.key, page[-1].turn.turn_id])
    return pb.ListUnrecordedUsageResponse(usages=map(_unrecorded, page), next_page_token=following)


def acknowledged(request: pb.AcknowledgeUsageRequest) -> list[TurnName]:
    """The turns whose usage the ledger has."""
    if not 1 <= len(request.turns) <= ACKNOWLEDGED_MAX:
        raise InvalidField("turns", f"must be 1 to {ACKNOWLEDGED_MAX}")
    return [
        TurnName(
            ThreadKey(
                fields.identifier(turn.workspace_id, f"turns[{index}].workspace_id"),
                fields.identifier(turn.thread_id, f"turns[{index}].thread_id"),
            ),
            fields.identifier(turn.turn_id, f"turns[{index}].turn_id"),
        )
        for index, turn in enumerate(request.turns)
    ]


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
        holder=begun.open.holder,
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


def _owed(request: pb.CommitTurnRequest | pb.AbortTurnRequest, usage: Usage | None) -> Owed | None:
    if not request.HasField("owed_usage"):
        return None
    if usage is None:
        raise InvalidField("owed_usage", "needs usage")
    owed = request.owed_usage
    event_id = fields.identifier(owed.event_id, "owed_usage.event_id")
    user_id = fields.identifier(owed.user_id, "owed_usage.user_id")
    agent_id = fields.identifier(owed.agent_id, "owed_usage.agent_id")
    if not owed.HasField("event_time"):
        raise InvalidField("owed_usage.event_time", "is required")
    return Owed(event_id, user_id, agent_id, fields.moment(owed.event_time, "owed_usage.event_time"))


def _unrecorded(found: OwedUsage) -> pb.UnrecordedUsage:
    turn, owed = found.turn, found.owed
    return pb.UnrecordedUsage(
        workspace_id=turn.key.workspace_id,
        thread_id=turn.key.thread_id,
        turn_id=turn.turn_id,
        owed_usage=pb.OwedUsage(
            event_id=owed.event_id,
            user_id=owed.user_id,
            agent_id=owed.agent_id,
            event_time=fields.timestamp(owed.event_time),
        ),
        usage=conversation_pb2.TurnUsage(input_tokens=found.usage.input_tokens, output_tokens=found.usage.output_tokens),
    )


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
