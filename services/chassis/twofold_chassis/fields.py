"""Readers of request fields: each returns a valid value or refuses with the field's name.

Used by every room's `wire.py`; the limits are those of the contract.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import uuid_utils
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from twofold_chassis.refusals import InvalidField, InvalidPageToken, InvalidToken

ID_BYTES_MAX = 255
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 500
_PAGE_TOKEN_BYTES_MAX = 4096
_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
# The years 1 to 9999, as the format of timestamps says.
_SECONDS_MIN = -62_135_596_800
_SECONDS_MAX = 253_402_300_799
_TOKEN_BYTES_MAX = 3072


def new_id() -> str:
    """A new id: a UUIDv7 (RFC 9562), so that ids made one after the other lie side by side in an index."""
    return str(uuid_utils.uuid7())


def identifier(value: str, field: str, *, bytes_max: int = ID_BYTES_MAX) -> str:
    """A required id: 1 to `bytes_max` bytes without control characters."""
    if value.isascii() and value.isprintable() and 0 < len(value) <= bytes_max:  # nearly all are
        return value
    return line(value, field, bytes_max=bytes_max, required=True)


def optional_identifier(value: str, field: str, *, bytes_max: int = ID_BYTES_MAX) -> str | None:
    """An id or None."""
    return identifier(value, field, bytes_max=bytes_max) if value else None


def line(value: str, field: str, *, bytes_max: int, required: bool = False) -> str:
    """Text of one line: no control characters (C0, DEL, C1), at most `bytes_max` bytes."""
    if value.isascii():
        if not value.isprintable():
            raise InvalidField(field, "must not hold control characters")
        length = len(value)
    else:
        if any(character < " " or "\x7f" <= character <= "\x9f" for character in value):
            raise InvalidField(field, "must not hold control characters")
        length = len(value.encode())
    if length > bytes_max:
        raise InvalidField(field, f"has {length} bytes, at most {bytes_max} are allowed")
    if required and not length:
        raise InvalidField(field, "is required")
    return value


def text(value: str, field: str, *, bytes_max: int, required: bool = False) -> str:
    """Text of any number of lines, without NUL (which Postgres cannot hold), at most `bytes_max` bytes."""
    if "\0" in value:
        raise InvalidField(field, "must not hold NUL characters")
    length = len(value) if value.isascii() else len(value.encode())
    if length > bytes_max:
        raise InvalidField(field, f"has {length} bytes, at most {bytes_max} are allowed")
    if required and not length:
        raise InvalidField(field, "is required")
    return value


def whole(value: int, field: str, *, least: int, most: int) -> int:
    """A whole number between `least` and `most`, both included."""
    if not least <= value <= most:
        raise InvalidField(field, f"is {value}, must be {least} to {most}")
    return value


def whole_or_default(value: int, field: str, *, default: int, most: int) -> int:
    """A whole number from 1 to `most`; 0 means `default`."""
    return whole(value, field, least=0, most=most) or default


def page_size(value: int, field: str = "page_size") -> int:
    """The size of a page: 0 means 50, at most 500."""
    return whole_or_default(value, field, default=PAGE_SIZE_DEFAULT, most=PAGE_SIZE_MAX)


def labels(value: Mapping[str, str], field: str, *, count_max: int = 32, value_bytes_max: int = 1024) -> dict[str, str]:
    """A caller's labels: at most `count_max`, keys like ids, values without NUL."""
    if len(value) > count_max:
        raise InvalidField(field, f"has {len(value)} entries, at most {count_max} are allowed")
    return {
        identifier(key, f"{field}.key"): text(entry, f"{field}[{key!r}]", bytes_max=value_bytes_max)
        for key, entry in value.items()
    }


def moment(value: Timestamp, field: str) -> datetime:
    """A time between the years 1 and 9999, in UTC, rounded down to microseconds."""
    if not (_SECONDS_MIN <= value.seconds <= _SECONDS_MAX and 0 <= value.nanos < 1_000_000_000):
        raise InvalidField(field, "is not a valid time")
    return _UNIX + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)


def span(value: Duration, field: str, *, most: timedelta) -> timedelta:
    """A length of time, more than 0 and at most `most`, rounded up to microseconds: it never becomes nothing."""
    microseconds = -(-(value.seconds * 1_000_000_000 + value.nanos) // 1000)
    if not 0 <= value.nanos < 1_000_000_000 or not 0 < microseconds <= most // timedelta(microseconds=1):
        raise InvalidField(field, f"must be more than 0 and at most {most.total_seconds():.0f} s")
    return timedelta(microseconds=microseconds)


def timestamp(value: datetime) -> Timestamp:
    """The wire's form of a time."""
    message = Timestamp()
    message.FromDatetime(value)
    return message


def seal(kind: str, content: bytes) -> bytes:
    """An opaque token: a kind, the content, a checksum against damage (it is no secret and no signature)."""
    body = kind.encode() + b"." + content
    return zlib.crc32(body).to_bytes(4, "big") + body


def unseal(kind: str, token: bytes, field: str) -> bytes:
    """The content of a token that `seal` made for this kind."""
    prefix = kind.encode() + b"."
    body = token[4:]
    if len(token) > _TOKEN_BYTES_MAX or not body.startswith(prefix) or zlib.crc32(body) != int.from_bytes(token[:4], "big"):
        raise InvalidToken(field, "is not a token of this service")
    return body[len(prefix) :]


def page_token(query: object, cursor: object) -> str:
    """The token of the next page: `cursor` (JSON values), bound to the `query` it belongs to."""
    content = json.dumps([_fingerprint(query), cursor], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(seal("page", content)).decode().rstrip("=")


def page_place(token: str, query: object, *kinds: type[str] | type[int]) -> list[Any] | None:
    """The place a page begins behind, as `page_token` was given it: ids and numbers of these kinds; None for the first page.

    A token is a stranger's JSON, and its checksum no secret: what is not an id or a number of 64 bits is damage.
    """
    cursor = _page_cursor(token, query)
    if cursor is None:
        return None
    if len(cursor) != len(kinds) or not all(map(_is_of_kind, cursor, kinds)):
        raise InvalidPageToken("page_token", "is damaged")
    return cursor


def _is_of_kind(value: object, kind: type[str] | type[int]) -> bool:
    if kind is int:
        return type(value) is int and 0 <= value < 2**63
    try:
        return isinstance(value, str) and bool(identifier(value, "page_token"))
    except (InvalidField, UnicodeEncodeError):  # the latter: half of a surrogate pair, which JSON can spell
        return False


def _page_cursor(token: str, query: object, field: str = "page_token") -> list[object] | None:
    """The cursor in a page token; None for the first page."""
    if not token:
        return None
    try:
        if len(token) > _PAGE_TOKEN_BYTES_MAX:
            raise ValueError
        sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        fingerprint, cursor = json.loads(unseal("page", sealed, field))
        places = list(cursor)
    except (ValueError, TypeError, RecursionError, binascii.Error, InvalidToken):  # a checksum is no signature
        raise InvalidPageToken(field, "is damaged") from None
    if fingerprint != _fingerprint(query):
        raise InvalidPageToken(field, "belongs to another query; begin with the first page")
    return places


def _fingerprint(query: object) -> int:
    return zlib.crc32(repr(query).encode())
