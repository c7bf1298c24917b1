"""Thread tokens: opaque for callers, they say up to where a caller has seen a thread."""

import struct
import zlib
from typing import NamedTuple

from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, InvalidToken
from twofold_memory.threads import ThreadKey

_FORM = struct.Struct(">IQQ?")


class ThreadToken(NamedTuple):
    """The thread had the message `seq` in this epoch, and the turn; that waited in the journal then, if it says so.

    Epoch and seq are 0 where nothing of the thread was known to be stored.
    """

    epoch: int
    seq: int
    turn_id: str = ""
    waits: bool = False


def seal(key: ThreadKey, epoch: int, seq: int, turn_id: str = "", *, waits: bool = False) -> bytes:
    """The token of a state of a thread; empty for a thread of which there is nothing."""
    if not epoch and not turn_id:
        return b""
    return fields.seal("thread", _FORM.pack(_mark(key), epoch, seq, waits) + turn_id.encode())


def unseal(key: ThreadKey, token: bytes, field: str) -> ThreadToken:
    """Refuses what was not issued for this thread."""
    content = fields.unseal("thread", token, field)
    if len(content) < _FORM.size:
        raise InvalidToken(field, "is not a token of this service")
    mark, epoch, seq, waits = _FORM.unpack(content[: _FORM.size])
    if mark != _mark(key):
        raise InvalidToken(field, "is a token of another conversation")
    try:
        turn_id = content[_FORM.size :].decode()
        if turn_id:
            fields.identifier(turn_id, field)
    except (UnicodeDecodeError, InvalidField):
        raise InvalidToken(field, "is damaged") from None
    return ThreadToken(epoch, seq, turn_id, waits)


def _mark(key: ThreadKey) -> int:
    return zlib.crc32(f"{len(key.workspace_id)}/{key.workspace_id}/{key.thread_id}".encode())
