"""What workspaces, users and agents have in common: they are kept, edited by field, and versioned."""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from twofold_chassis.refusals import EtagMismatch, FailedPrecondition, Reason
from twofold_chassis.requests import Attempt
from twofold_registry.revisions import Revision, etag

_FIRST_ID, _LAST_ID = "", "\U0010ffff" * 64  # longer, in bytes, than any id: so it stands behind them all
_FIRST_TIME, _LAST_TIME = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


class Resource(Protocol):
    """What callers set of a resource, and where it stands."""

    kind: ClassVar[str]

    @property
    def path(self) -> tuple[str, ...]:
        """The ids from the workspace down to the resource."""
        ...


Kind = TypeVar("Kind", bound=Resource)
Item = TypeVar("Item")
Key = tuple[str, ...]
"""The ids from the workspace down to a resource."""


class NotDeleted(FailedPrecondition):
    """Only what is deleted can be restored or purged."""

    reason = Reason.REASON_NOT_DELETED


@dataclass(frozen=True, slots=True)
class Stamp:
    """The place of one change in the registry's history, and when it was made by the database's clock."""

    revision: Revision
    at: datetime
    tag: int


@dataclass(frozen=True, slots=True)
class Stored(Generic[Kind]):
    """A resource as it is kept. `revision` is that of its last change; 0 if it is not kept but only would be."""

    value: Kind
    created_at: datetime
    updated_at: datetime
    revision: int
    deleted_at: datetime | None = None
    purge_at: datetime | None = None

    @classmethod
    def new(cls, value: Kind, stamp: Stamp) -> "Stored[Kind]":
        """The resource from its creation on."""
        return cls(value, stamp.at, stamp.at, stamp.revision.number)

    def changed(self, value: Kind, stamp: Stamp) -> "Stored[Kind]":
        """The resource after a change; it lives."""
        return Stored(value, self.created_at, stamp.at, stamp.revision.number)

    def deleted(self, stamp: Stamp, purge_at: datetime) -> "Stored[Kind]":
        """The resource after its deletion."""
        return Stored(self.value, self.created_at, stamp.at, stamp.revision.number, stamp.at, purge_at)

    @property
    def etag(self) -> str:
        """The version of the resource; empty if it is not kept."""
        if not self.revision:
            return ""
        return etag(self.value.kind, *self.value.path, revision=self.revision, at=self.updated_at)

    def expect(self, given: str) -> None:
        """Refuses if the caller gave an etag and it is not the current one."""
        if given and given != self.etag:
            raise EtagMismatch(f"the {self.value.kind} was changed by somebody else; read it again, then decide")

    def require_deleted(self) -> None:
        """Refuses what lives."""
        if self.deleted_at is None:
            raise NotDeleted(f"the {self.value.kind} is not deleted")


@dataclass(frozen=True, slots=True)
class Read(Generic[Item]):
    """An answer and the revision it was read at, both out of one statement."""

    value: Item
    revision: Revision


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some items in order, and whether more follow them."""

    items: Sequence[Item]
    more: bool


@dataclass(frozen=True, slots=True)
class Edit:
    """New values of fields, by path: "display_name", "settings", "settings.model"."""

    values: Mapping[str, Any]

    def applied(self, value: Kind) -> Kind:
        """The resource with the new values in place."""
        parts: dict[str, Any] = {}
        for path in sorted(self.values):  # "settings" before "settings.model"
            name, _, rest = path.partition(".")
            parts[name] = _with(parts.get(name, getattr(value, name)), rest, self.values[path])
        edited: Any = value
        result: Kind = replace(edited, **parts)  # at once: what is between the first field and the last may break a rule
        return result


def _with(value: Any, path: str, new: Any) -> Any:
    if not path:
        return new
    name, _, rest = path.partition(".")
    return replace(value, **{name: _with(getattr(value, name), rest, new)})


Answer = Callable[[Item, Revision], bytes]
"""Writes the answer of a change down, so that a repeat of the call gets the very same bytes."""


class Write(NamedTuple):
    """How a write is asked for. An empty etag means any; `validate_only`: everything is checked and nothing is kept."""

    attempt: Attempt
    etag: str = ""
    validate_only: bool = False


class Look(NamedTuple):
    """How something is read: deleted ones too, and not older than `least`."""

    show_deleted: bool = False
    least: Revision | None = None


class Order(enum.Enum):
    """In which order a listing is; those of the same time are in the order of their ids."""

    ID = "id"
    ID_DESC = "id desc"
    TIME = "create_time"
    TIME_DESC = "create_time desc"

    @property
    def is_by_time(self) -> bool:
        return self in (Order.TIME, Order.TIME_DESC)

    @property
    def start(self) -> tuple[object, ...]:
        """The place before every resource."""
        first = self in (Order.ID, Order.TIME)
        resource_id = _FIRST_ID if first else _LAST_ID
        return (_FIRST_TIME if first else _LAST_TIME, resource_id) if self.is_by_time else (resource_id,)

    def place(self, stored: Stored[Kind]) -> tuple[object, ...]:
        """Where a resource stands. It never changes, so that pages neither repeat nor skip what others leave alone."""
        resource_id = stored.value.path[-1]
        return (stored.created_at, resource_id) if self.is_by_time else (resource_id,)


@dataclass(frozen=True, slots=True)
class Listing:
    """Which page of which resources: those of the workspace (all workspaces where it is empty) that pass the filters.

    `filters` are in the order of the kind's own filters; None passes all.
    """

    workspace_id: str
    filters: tuple[object, ...]
    look: Look
    order: Order
    after: tuple[object, ...]
    size: int


class Resources(Protocol[Kind]):
    """The resources of one kind that are kept. Those of deleted workspaces are unknown to every method.

    Deleted ones are unknown too, but to undelete, to purge, and to a look that shows them. Every method that names one
    raises the refusal for an unknown one of its kind; every write that is given an etag raises EtagMismatch.
    """

    async def create(self, value: Kind, write: Write, answer: Answer[Stored[Kind]]) -> bytes:
        """Raises WorkspaceUnknown, and the refusals for what is taken."""
        ...

    async def get(self, key: Key, look: Look) -> Read[Stored[Kind]]: ...

    async def batch_get(self, workspace_id: str, ids: Sequence[str], look: Look) -> Read[Sequence[Stored[Kind]]]:
        """Those of these ids that there are, in no order. The workspace is empty for workspaces themselves."""
        ...

    async def list(self, listing: Listing) -> Page[Stored[Kind]]:
        """Raises WorkspaceUnknown."""
        ...

    async def update(self, key: Key, edit: Edit, write: Write, answer: Answer[Stored[Kind]]) -> bytes:
        """Raises the refusals for what is taken."""
        ...

    async def delete(self, key: Key, write: Write, answer: Answer[Stored[Kind]]) -> bytes:
        """Hides the resource and what hangs on it; its unique values but the id become free."""
        ...

    async def undelete(self, key: Key, write: Write, answer: Answer[Stored[Kind]]) -> bytes:
        """Shows it again, and what hangs on it. Raises NotDeleted, and the refusals for what was taken meanwhile."""
        ...

    async def purge(self, key: Key, write: Write, answer: Answer[None]) -> bytes:
        """Forgets all of it but its id, which is never used again. Raises NotDeleted."""
        ...
