"""Audit: who changed what, when, before and after."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from twofold_registry.resources import Page

RESOURCE_KINDS = ("workspace", "user", "agent", "permission")


@dataclass(frozen=True, slots=True)
class Entry:
    """Tells of one change. `before` and `after` are JSON objects, empty for a creation and a deletion."""

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
