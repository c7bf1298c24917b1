"""Dead letters on the wire."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from twofold.memory.v1 import conversation_pb2
from twofold.memory.v1 import sync_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, InvalidPageToken
from twofold_memory import tokens
from twofold_memory.dead_letters import BECAUSE_BYTES_MAX, DISCARDED, REPLAYED, DeadLetter, Name, Opened, Place
from twofold_memory.encoding import waiting_entries_of
from twofold_memory.threads import KeptTurn, NewTurn
from twofold_memory.wire.messages import messages_of, thread_key

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MICROS_MAX = 2**53  # the year 2255
_HASH_DIGITS_MAX = 256
_REASONS = {
    "KEY_CONFLICT": pb.DEAD_LETTER_REASON_KEY_CONFLICT,
    "INVALID": pb.DEAD_LETTER_REASON_INVALID,
    "DELETED": pb.DEAD_LETTER_REASON_CONVERSATION_DELETED,
    "FOREIGN": pb.DEAD_LETTER_REASON_FOREIGN,
}
_RESOLUTIONS = {
    REPLAYED: pb.DEAD_LETTER_RESOLUTION_REPLAYED,
    DISCARDED: pb.DEAD_LETTER_RESOLUTION_DISCARDED,
}

NamesOne = pb.GetDeadLetterRequest | pb.ReplayDeadLetterRequest | pb.DiscardDeadLetterRequest


def name(request: NamesOne) -> Name:
    """Which dead letter a request is about."""
    key = thread_key(request.workspace_id, request.thread_id)
    turn_id = fields.identifier(request.turn_id, "turn_id")
    return Name(key, turn_id, _hash(request.payload_hash) if request.payload_hash else None)


def because(request: pb.ReplayDeadLetterRequest | pb.DiscardDeadLetterRequest, *, required: bool) -> str:
    """Why something is done with it."""
    return fields.line(request.reason, "reason", bytes_max=BECAUSE_BYTES_MAX, required=required)


def after(request: pb.ListDeadLettersRequest, query: Sequence[object]) -> Place | None:
    """The place behind which a page begins."""
    place = fields.page_place(request.page_token, query, int, str, str, str, str)
    if place is None:
        return None
    micros, workspace_id, thread_id, turn_id, digits = place
    try:
        if micros > _MICROS_MAX:
            raise ValueError
        return Place(_EPOCH + micros * _MICROSECOND, workspace_id, thread_id, turn_id, bytes.fromhex(digits))
    except ValueError:
        raise InvalidPageToken("page_token", "is damaged") from None


def list_response(found: Sequence[DeadLetter], size: int, query: Sequence[object]) -> pb.ListDeadLettersResponse:
    """A page of dead letters; one more than `size` says that there is another page."""
    page, following = found[:size], ""
    if len(found) > size:
        created_at, *ids, payload_hash = page[-1].place
        following = fields.page_token(query, [(created_at - _EPOCH) // _MICROSECOND, *ids, payload_hash.hex()])
    return pb.ListDeadLettersResponse(dead_letters=map(message, page), next_page_token=following)


def get_response(opened: Opened) -> pb.GetDeadLetterResponse:
    """One with what was said in it."""
    letter, turn = opened
    if turn is None:
        return pb.GetDeadLetterResponse(dead_letter=message(letter), unreadable=True)
    usage = None
    if turn.usage is not None:
        usage = conversation_pb2.TurnUsage(input_tokens=turn.usage.input_tokens, output_tokens=turn.usage.output_tokens)
    return pb.GetDeadLetterResponse(
        dead_letter=message(letter),
        messages=messages_of(waiting_entries_of(turn.messages, turn.turn_id)),
        user_id=turn.user_id or "",
        usage=usage,
    )


def replay_answer(turn: NewTurn, kept: KeptTurn) -> bytes:
    """The answer of ReplayDeadLetter. It holds no content: it is kept for a day."""
    return pb.ReplayDeadLetterResponse(
        new_turn_id=turn.turn_id,
        first_seq=kept.first_seq,
        last_seq=kept.last_seq,
        create_time=fields.timestamp(kept.created_at),
        duplicate=kept.duplicate,
        order_unverified=kept.order_unverified,
        thread_token=tokens.seal(turn.key, kept.epoch, kept.last_seq, turn.turn_id),
    ).SerializeToString()


def discard_answer(letter: DeadLetter) -> bytes:
    """The answer of DiscardDeadLetter."""
    return pb.DiscardDeadLetterResponse(dead_letter=message(letter)).SerializeToString()


def message(letter: DeadLetter) -> pb.DeadLetter:
    """A dead letter without what was said in it."""
    return pb.DeadLetter(
        workspace_id=letter.key.workspace_id,
        thread_id=letter.key.thread_id,
        turn_id=letter.turn_id,
        payload_hash=letter.payload_hash.hex(),
        reason=_REASONS.get(letter.reason, pb.DEAD_LETTER_REASON_UNSPECIFIED),
        sqlstate=letter.sqlstate,
        payload_bytes=letter.payload_bytes,
        create_time=fields.timestamp(letter.created_at),
        resolution=_RESOLUTIONS.get(letter.resolution, pb.DEAD_LETTER_RESOLUTION_UNSPECIFIED),
        resolve_time=None if letter.resolved_at is None else fields.timestamp(letter.resolved_at),
        resolved_by=letter.resolved_by,
        resolved_because=letter.resolved_because,
    )


def _hash(digits: str) -> bytes:
    fields.line(digits, "payload_hash", bytes_max=_HASH_DIGITS_MAX)
    try:
        if " " in digits:  # which the library reads over
            raise ValueError
        return bytes.fromhex(digits)
    except ValueError:
        raise InvalidField("payload_hash", "must be hexadecimal digits, two for each byte") from None
