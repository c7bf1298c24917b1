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
_STATUS = b"\xa0\x01"
_REVISION = b"\xa8\x01"
_TURN_ID_TAG = 17 << 3 | 2
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
    status: int = 0,
    revision: int = 0,
) -> bytes:
    """One message as a frame: an element of `messages` of an answer. `turn_id` is UTF-8, `created` what `stamp` made.

    `seq` is 0 for a message that has no number yet.
    """
    pieces = [_ROLE, varint(role)]
    if content is not None:
        text = content.encode()
        pieces += (_CONTENT, varint(len(text)), text)
    pieces.append(rest)
    if token_count is not None:
        pieces += (_TOKEN_COUNT, varint(token_count))
    if seq:
        pieces += (_SEQ, varint(seq))
    pieces += (_TURN_ID, varint(len(turn_id)), turn_id)
    if turn_index:
        pieces += (_TURN_INDEX, varint(turn_index))
    pieces.append(created)
    if status:
        pieces += (_STATUS, varint(status))
    if revision:
        pieces += (_REVISION, varint(revision))
    encoded = b"".join(pieces)
    return _MESSAGES + varint(len(encoded)) + encoded


def entries_of(messages: Sequence[NewMessage], first_seq: int, turn_id: str, created_at: datetime) -> list[Entry]:
    """A turn's messages as they stand in the store once they are numbered."""
    return _entries(messages, first_seq, turn_id, stamp(created_at))


def waiting_entries_of(messages: Sequence[NewMessage], turn_id: str) -> list[Entry]:
    """The messages of a turn that has no numbers yet: all of them 0."""
    return [Entry(0, *entry[1:]) for entry in _entries(messages, 0, turn_id, b"", numbered=False)]


def _entries(
    messages: Sequence[NewMessage], first_seq: int, turn_id: str, created: bytes, *, numbered: bool = True
) -> list[Entry]:
    name = turn_id.encode()
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
                first_seq + index if numbered else 0,
                name,
                index,
                created,
                message.status,
            ),
        )
        for index, message in enumerate(messages)
    ]


def turn_id_of(frame: bytes) -> str:
    """The turn of a message, read from its frame."""
    place = _after_varint(frame, 1)  # behind the frame's own tag: its length
    while place < len(frame):
        tag, place = _read_varint(frame, place)
        if tag & 7 == 0:
            place = _after_varint(frame, place)
            continue
        length, place = _read_varint(frame, place)
        if tag == _TURN_ID_TAG:
            return frame[place : place + length].decode()
        place += length
    raise ValueError("a message without its turn")


def _read_varint(value: bytes, place: int) -> tuple[int, int]:
    number, shift = 0, 0
    while True:
        byte = value[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place


def _after_varint(value: bytes, place: int) -> int:
    return _read_varint(value, place)[1]


def element(entry: Entry) -> bytes:
    """The message as an element of the L1 list."""
    return _LETTERS[entry.starts_turn, entry.is_result] + entry.frame


def entry_of(seq: int, value: bytes) -> Entry:
    """What `element` made."""
    starts_turn, is_result = _FLAGS[value[0]]
    return Entry(seq, starts_turn, is_result, value[1:])
