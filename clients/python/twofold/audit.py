"""The audit, verified by whoever has its entries: nothing here asks a service.

    entries = [entry async for answer in client.audit.ExportAudit(request) for entry in answer.entries]
    link = verify(entries)                         # raises ChainBroken, which names the first bad entry
    verify(entries, head=head)                     # and that it still holds a head that was exported earlier
    assert signed_by(head, public_key)             # which this key has signed

The form of hashes and signatures is told in audit.proto.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from twofold.registry.v1.audit_pb2 import AuditEntry, SignedAuditHead

_PURPOSE = b"twofold audit head v1\n"
_KEY_BYTES = 32


class Link(NamedTuple):
    """A place of a chain, and the hash of the entry there."""

    seq: int
    hash: bytes


FIRST = Link(0, bytes(32))
"""Where every chain begins."""


class ChainBroken(ValueError):  # noqa: N818  (a verdict)
    """An entry is not as it was written; `seq` is the first such place."""

    def __init__(self, seq: int, problem: str) -> None:
        super().__init__(f"seq {seq}: {problem}")
        self.seq = seq
        self.problem = problem


def link_hash(entry: AuditEntry) -> bytes:
    """The hash that the entry must have, given its prev_hash and its content."""
    values = (
        entry.workspace_id,
        entry.seq,
        entry.revision,
        entry.ordinal,
        entry.actor,
        entry.action,
        entry.resource_kind,
        entry.resource_id,
        entry.before_json,
        entry.after_json,
        entry.request_id,
        _microseconds(entry.create_time),
    )
    return hashlib.sha256(entry.prev_hash + b"".join([_written(value) for value in values])).digest()


def verify(entries: Iterable[AuditEntry], *, after: Link = FIRST, head: SignedAuditHead | None = None) -> Link:
    """The end of the entries, which are in the order of their places and begin behind `after`. Raises ChainBroken.

    They, or `after`, must hold the entry that `head` is of: raises ValueError if that lies before `after`. The signature of
    the head is not looked at: see `signed_by`.
    """
    workspace_id = head.workspace_id if head else ""
    if head and head.seq < after.seq:
        raise ValueError(f"the head, of {head.seq}, lies before the place to begin behind, {after.seq}")
    _meet(after, head)
    for entry in entries:
        workspace_id = workspace_id or entry.workspace_id
        after = _behind(after, entry, workspace_id)
        _meet(after, head)
    if head and after.seq < head.seq:
        raise ChainBroken(after.seq + 1, f"missing: when the head was signed the chain ended at {head.seq}")
    return after


def _meet(link: Link, head: SignedAuditHead | None) -> None:
    if head and link.seq == head.seq and link.hash != head.hash:
        raise ChainBroken(link.seq, "another entry stood here when the head was signed: history was rewritten")


def _behind(link: Link, entry: AuditEntry, workspace_id: str) -> Link:
    place = link.seq + 1
    if entry.seq > place:
        raise ChainBroken(place, f"missing: the next entry is that of {entry.seq}")
    if entry.seq < place:
        raise ChainBroken(entry.seq, "an entry too many")
    if entry.workspace_id != workspace_id:
        raise ChainBroken(place, "the entry is of another workspace")
    if entry.prev_hash != link.hash:
        raise ChainBroken(place, "the entry does not follow the one before it")
    if entry.hash != link_hash(entry) or not _is_whole(entry.create_time):
        raise ChainBroken(place, "the hash is not that of the content")
    return Link(place, entry.hash)


def head_bytes(head: SignedAuditHead) -> bytes:
    """What the signature of a head is of."""
    time = _microseconds(head.time)
    values = (head.workspace_id, head.seq, head.hash, head.revision, head.epoch, time, head.key_id)
    return _PURPOSE + b"".join([_written(value) for value in values])


def key_id(public_key: bytes) -> str:
    """The name of a public key, as heads give it."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def signed_by(head: SignedAuditHead, public_key: bytes) -> bool:
    """Whether this key (Ed25519, 32 bytes) has signed the head. Needs the package `cryptography`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if len(public_key) != _KEY_BYTES or head.key_id != key_id(public_key) or not _is_whole(head.time):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(head.signature, head_bytes(head))
    except InvalidSignature:
        return False
    return True


def _written(value: str | int | bytes) -> bytes:
    """Behind its length; a number is 8 bytes."""
    if isinstance(value, int):
        value = value.to_bytes(8, "big", signed=True)
    elif isinstance(value, str):
        value = value.encode()
    return len(value).to_bytes(8, "big") + value


def _is_whole(time: Timestamp) -> bool:
    """Whether nothing of it is below the microsecond, which no hash and no signature tells of."""
    return time.nanos % 1000 == 0


def _microseconds(time: Timestamp) -> int:
    return time.seconds * 1_000_000 + time.nanos // 1000
