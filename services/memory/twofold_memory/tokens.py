"""Thread tokens: opaque for callers, they say up to where a caller has seen a thread."""

import struct
import zlib
from typing import NamedTuple

from twofold_chassis import fields
from twofold_chassis.refusals import InvalidToken
from twofold_memory.threads import ThreadKey

_FORM = struct.Struct(">IQQ")


class ThreadToken(NamedTuple):
    """The thread had the message `seq` in this epoch."""

    epoch: int
    seq: int


def seal(key: ThreadKey, epoch: int, seq: int) -> bytes:
    """The token of a state of a thread; empty for a thread that does not exist."""
    return fields.seal("thread", _FORM.pack(_mark(key), epoch, seq)) if epoch else b""


def unseal(key: ThreadKey, token: bytes, field: str) -> ThreadToken:
    """Refuses what was not issued for this thread."""
    content = fields.unseal("thread", token, field)
    if len(content) != _FORM.size:
        raise InvalidToken(field, "is not a token of this service")
    mark, epoch, seq = _FORM.unpack(content)
    if mark != _mark(key):
        raise InvalidToken(field, "is a token of another conversation")
    return ThreadToken(epoch, seq)


def _mark(key: ThreadKey) -> int:
    return zlib.crc32(f"{len(key.workspace_id)}/{key.workspace_id}/{key.thread_id}".encode())
