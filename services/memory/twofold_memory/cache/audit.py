"""L1 windows as an audit sees them: whatever is there, also what no reader takes for a window."""

from collections.abc import Sequence

from twofold_chassis.redis import Argument, RedisLink, losable
from twofold_memory import keys
from twofold_memory.audits import Held
from twofold_memory.cache.journal import waiting_of
from twofold_memory.cache.scripts import script
from twofold_memory.encoding import entry_of
from twofold_memory.threads import Entry, Head, ThreadKey

_NUMBER_MAX = 2**63 - 1


class RedisAudits:
    """Looks at windows, and drops wrong ones."""

    def __init__(self, link: RedisLink, *, ttl_s: float) -> None:
        self._link = link
        self._ttl_ms = round(ttl_s * 1000)
        self._inspect = script("inspect")
        self._drop = script("drop")

    async def held(self, key: ThreadKey) -> Held | None:
        """All that is held of a thread; None if nobody can know."""
        reply = await losable(self._link.run(self._inspect, keys.all_of_thread(key), ()), otherwise=None)
        if reply is None:
            return None
        head, length, lasting, elements, waiting = reply
        epoch, first, following, highest, owner, erased = head
        next_seq = _number(following)
        mark = () if length == 0 and not any(head) else (*(b"" if value is None else b"=" + value for value in head), length)
        return Held(
            mark=tuple(map(_bytes, mark)),
            epoch=_number(epoch),
            first_seq=_number(first),
            next_seq=next_seq,
            highest_seq=_number(highest),
            owner=(owner or b"").decode(errors="replace") or None,
            erased=bool(erased),
            length=length,
            lasting=bool(lasting),
            entries=[_entry(next_seq - length + index, value) for index, value in enumerate(elements)],
            waiting=waiting_of(key, waiting),
        )

    async def drop(self, key: ThreadKey, mark: Sequence[bytes], head: Head | None) -> bool:
        """Drops a window that is as it was seen; whether that is done."""
        arguments: list[Argument] = [*mark, self._ttl_ms]
        if head is not None:
            arguments += (head.epoch, head.next_seq - 1, head.owner or "", int(head.erased))
        reply = await losable(self._link.run(self._drop, keys.all_of_thread(key), arguments), otherwise=None)
        return bool(reply == b"DROPPED")


def _number(value: bytes | None) -> int:
    """A number of a head; what somebody wrote there by hand becomes 0, or a number that fits."""
    return min(int(value[:20]), _NUMBER_MAX) if value is not None and value.isdigit() else 0


def _bytes(value: bytes | int) -> bytes:
    return str(value).encode() if isinstance(value, int) else value


def _entry(seq: int, value: bytes) -> Entry:
    try:
        return entry_of(seq, value)
    except (LookupError, ValueError):  # written by another version, or by hand: equal to no message
        return Entry(seq, False, False, value)
