"""What workspaces, users and agents have in common: they are kept, edited by field, and versioned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from twofold_chassis.refusals import EtagMismatch
from twofold_registry.revisions import Revision, etag


class Resource(Protocol):
    """What callers set of a resource, and where it stands."""

    kind: ClassVar[str]

    @property
    def path(self) -> tuple[str, ...]:
        """The ids from the workspace down to the resource."""
        ...


Kind = TypeVar("Kind", bound=Resource)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Stamp:
    """The place of one change in the registry's history, and when it was made by the database's clock."""

    revision: Revision
    at: datetime
    tag: int


@dataclass(frozen=True, slots=True)
class Stored(Generic[Kind]):
    """A resource as it is kept. `revision` is that of its last change."""

    value: Kind
    created_at: datetime
    updated_at: datetime
    revision: int

    @classmethod
    def new(cls, value: Kind, stamp: Stamp) -> "Stored[Kind]":
        """The resource from its creation on."""
        return cls(value, stamp.at, stamp.at, stamp.revision.number)

    def changed(self, value: Kind, stamp: Stamp) -> "Stored[Kind]":
        """The resource after a change."""
        return Stored(value, self.created_at, stamp.at, stamp.revision.number)

    @property
    def etag(self) -> str:
        """The version of the resource."""
        return etag(self.value.kind, *self.value.path, revision=self.revision, at=self.updated_at)

    def expect(self, given: str) -> None:
        """Refuses if the caller gave an etag and it is not the current one."""
        if given and given != self.etag:
            raise EtagMismatch(f"the {self.value.kind} was changed by somebody else; read it again, then decide")


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
        edited: Any = value
        for path in sorted(self.values):  # "settings" before "settings.model"
            edited = _with(edited, path, self.values[path])
        result: Kind = edited
        return result


def _with(value: Any, path: str, new: Any) -> Any:
    name, _, rest = path.partition(".")
    return replace(value, **{name: _with(getattr(value, name), rest, new) if rest else new})


Answer = Callable[[Item, Revision], bytes]
"""Writes the answer of a change down, so that a repeat of the call gets the very same bytes."""
