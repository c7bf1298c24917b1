"""Audit: who changed what, when, before and after."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol

from twofold_registry.resources import Page

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RESOURCE_KINDS = ("workspace", "user", "agent", "permission")


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


def link_hash(last: bytes, workspace_id: str, entry: Entry) -> bytes:
    """SHA-256 over the hash of the entry before and all values of this one, so that none can be changed, left out or moved.

    Each value is preceded by its length as 8 bytes, big-endian; text is UTF-8, a number 8 bytes (big-endian, two's
    complement), the time a number of microseconds since 1970. Chaining: Haber & Stornetta, How to time-stamp a digital
    document, 1991.
    """
    digest = hashlib.sha256(last)
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
        (entry.at - _EPOCH) // timedelta(microseconds=1),
    )
    for value in values:
        told = value.to_bytes(8, "big", signed=True) if isinstance(value, int) else value.encode()
        digest.update(len(told).to_bytes(8, "big"))
        digest.update(told)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which entries of a workspace to list."""

    workspace_id: str
    resource_kind: str | None
    resource_id: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry stands in the trail."""

    revision: int
    ordinal: int


NEWEST = Place(2**63 - 1, 0)
"""Ahead of every entry."""


class Audit(Protocol):
    """The trail; entries enter it in the transactions of the changes they tell of."""

    async def list(self, query: AuditQuery, before: Place, size: int) -> Page[Entry]:
        """Up to `size` entries older than `before`, newest first. Raises WorkspaceUnknown."""
        ...
