"""Audit: who changed what, when, before and after."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol

from twofold_registry.revisions import Revision

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RESOURCE_KINDS = ("workspace", "user", "agent", "permission", "invoice", "adjustment", "caps")


@dataclass(frozen=True, slots=True)
class Entry:
    """Tells of one change. `before` and `after` are JSON objects, empty for a creation and a deletion.

    `seq` is its place in the workspace's chain: 1, 2, 3, …
    """

    seq: int
    revision: int
    ordinal: int
    actor: str
    action: str
    resource_kind: str
    resource_id: str
    before: str
    after: str
    request_id: str
    at: datetime


class Link(NamedTuple):
    """The end of a workspace's chain: the place of its newest entry, and that entry's hash."""

    seq: int
    hash: bytes

    def next(self, workspace_id: str, entry: Entry) -> "Link":
        """The end after one entry more."""
        return Link(entry.seq, link_hash(self.hash, workspace_id, entry))


FIRST_LINK = Link(0, bytes(32))
"""The end of a chain without entries."""


class Chained(NamedTuple):
    """An entry as it stands in the chain: with the hash of the one before, and its own."""

    entry: Entry
    prev_hash: bytes
    hash: bytes


def link_hash(last: bytes, workspace_id: str, entry: Entry) -> bytes:
    """SHA-256 over the hash of the entry before and all values of this one, so that none can be changed, left out or moved.

    The form is told in audit.proto, for everybody who verifies a chain. Chaining: Haber & Stornetta, How to time-stamp a
    digital document, 1991.
    """
    values = (
        workspace_id,
        entry.seq,
        entry.revision,
        entry.ordinal,
        entry.actor,
        entry.action,
        entry.resource_kind,
        entry.resource_id,
        entry.before,
        entry.after,
        entry.request_id,
        entry.at,
    )
    digest = hashlib.sha256(last)
    for value in values:
        digest.update(written(value))
    return digest.digest()


def written(value: str | int | bytes | datetime) -> bytes:
    """A value as hashes and signatures take it, behind its length as 8 bytes, big-endian.

    Text is UTF-8, a number 8 bytes (big-endian, two's complement), a time a number of microseconds since 1970.
    """
    if isinstance(value, datetime):
        value = microseconds(value)
    if isinstance(value, int):
        value = value.to_bytes(8, "big", signed=True)
    elif isinstance(value, str):
        value = value.encode()
    return len(value).to_bytes(8, "big") + value


def microseconds(at: datetime) -> int:
    """A time as a number of microseconds since 1970."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def moment(us: int) -> datetime:
    """The time that this number of microseconds since 1970 is. Raises OverflowError."""
    return _EPOCH + timedelta(microseconds=us)


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which entries of a workspace to list: from `start` on, before `end`; of both revisions and between them."""

    workspace_id: str
    resource_kind: str | None = None
    resource_id: str | None = None
    actor: str | None = None
    action: str | None = None
    request_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    first_revision: int | None = None
    last_revision: int | None = None
    oldest_first: bool = False


class Place(NamedTuple):
    """Where an entry stands in a listing: by its place in the chain, or, with a span of time, by its time first."""

    at: datetime
    seq: int


@dataclass(frozen=True, slots=True)
class Trail:
    """Some entries in order; where the next page begins behind, None on the last one."""

    entries: Sequence[Chained]
    end: Place | None


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a workspace's chain as it was at one time: its newest entry, and which history its revision is of."""

    workspace_id: str
    seq: int
    hash: bytes
    revision: int
    epoch: int
    at: datetime

    @property
    def link(self) -> Link:
        return Link(self.seq, self.hash)


class Audit(Protocol):
    """The trail; entries enter it in the transactions of the changes they tell of."""

    async def list(self, query: AuditQuery, behind: Place | None, size: int, least: Revision | None) -> Trail:
        """Up to `size` entries behind a place. Raises WorkspaceUnknown, RevisionNotReached, HistoryChanged."""
        ...

    async def head(self, workspace_id: str) -> Head:
        """The end of a chain now. Raises WorkspaceUnknown."""
        ...
