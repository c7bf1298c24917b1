"""Stored messages as bytes of the wire: twofold.memory.v1.Message, written by hand.

An answer is put together from these bytes without building and encoding message objects again, which costs more than all
the rest of a read. Protocol buffers allow it: fields may come in any order, and a repeated field is its elements one after
the other (https://protobuf.dev/programming-guides/encoding/). A test compares with the library.

The same bytes are an element of the L1 list, behind one letter that says what a window must know of the message.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from twofold_memory.threads import Entry, NewMessage

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LETTERS = {(False, False): b"m", (True, False): b"t", (False, True): b"r", (True, True): b"s"}
_FLAGS = {letter[0]: flags for flags, letter in _LETTERS.items()}

# Tags of Message: field number << 3 | wire type, as varints.
_ROLE = b"\x08"
_CONTENT = b"\x12"
_TOKEN_COUNT = b"\x38"
_SEQ = b"\x80\x01"
_TURN_ID = b"\x8a\x01"
_TURN_INDEX = b"\x90\x01"
_CREATE_TIME = b"\x9a\x01"
# Tag of `messages` in the answers that hold a list of them: field 1, length-delimited.
_MESSAGES = b"\x0a"


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_SMALL = tuple(_varint(value) for value in range(1 << 14))


def varint(value: int) -> bytes:
    """A base-128 varint of a number that is not negative."""
    return _SMALL[value] if value < len(_SMALL) else _varint(value)


def stamp(moment: datetime) -> bytes:
    """`create_time` of a message as bytes."""
    micros = (moment - _EPOCH) // _MICROSECOND
    seconds, rest = divmod(micros, 1_000_000)
    body = b"\x08" + varint(seconds) + b"\x10" + varint(rest * 1000)
    return _CREATE_TIME + varint(len(body)) + body


def encode(
    role: int,
    content: str | None,
    rest: bytes,
    token_count: int | None,
    seq: int,
    turn_id: bytes,
    turn_index: int,
    created: bytes,
) -> bytes:
    """One message as a frame: an element of `messages` of an answer. `turn_id` is UTF-8, `created` what `stamp` made."""
    pieces = [_ROLE, varint(role)]
    if content is not None:
        text = content.encode()
        pieces += (_CONTENT, varint(len(text)), text)
    pieces.append(rest)
    if token_count is not None:
        pieces += (_TOKEN_COUNT, varint(token_count))
    pieces += (_SEQ, varint(seq), _TURN_ID, varint(len(turn_id)), turn_id)
    if turn_index:
        pieces += (_TURN_INDEX, varint(turn_index))
    pieces.append(created)
    encoded = b"".join(pieces)
    return _MESSAGES + varint(len(encoded)) + encoded


def entries_of(messages: Sequence[NewMessage], first_seq: int, turn_id: str, created_at: datetime) -> list[Entry]:
    """A turn's messages as they stand in the store once they are numbered."""
    name, created = turn_id.encode(), stamp(created_at)
    return [
        Entry(
            first_seq + index,
            index == 0,
            message.is_result,
            encode(
                message.role,
                message.content,
                message.rest,
                message.token_count,
                first_seq + index,
                name,
                index,
                created,
            ),
        )
        for index, message in enumerate(messages)
    ]


def element(entry: Entry) -> bytes:
    """The message as an element of the L1 list."""
    return _LETTERS[entry.starts_turn, entry.is_result] + entry.frame


def entry_of(seq: int, value: bytes) -> Entry:
    """What `element` made."""
    starts_turn, is_result = _FLAGS[value[0]]
    return Entry(seq, starts_turn, is_result, value[1:])
