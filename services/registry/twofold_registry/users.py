"""Users: the people and machines of a workspace."""

import enum
import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from twofold_chassis.refusals import AlreadyExists, FailedPrecondition, InvalidField, NotFound, Reason
from twofold_registry.resources import Resources
from twofold_registry.workspaces import Limit

EMAIL_BYTES_MAX = 254
# One "@" with something on both sides, no spaces; control characters are refused where the field is read. Whether an
# address takes mail is known only by sending some.
_EMAIL = re.compile(r"[^\s@]+@[^\s@]+").fullmatch


class UserUnknown(NotFound):
    """There is no such user in the workspace, or it is deleted."""

    reason = Reason.REASON_USER_UNKNOWN

    def __init__(self, key: "UserKey") -> None:
        super().__init__(f"no user {key.user_id!r}", workspace_id=key.workspace_id, user_id=key.user_id)


class UserExists(AlreadyExists):
    """The id is taken, by a deleted user too."""

    reason = Reason.REASON_USER_EXISTS


class EmailTaken(AlreadyExists):
    """Another user of the workspace has the address."""

    reason = Reason.REASON_EMAIL_TAKEN


class IdentityTaken(AlreadyExists):
    """Another user of the workspace is this subject of the identity provider."""

    reason = Reason.REASON_IDENTITY_TAKEN


class LastOwner(FailedPrecondition):
    """Nobody else could run the workspace: one that has an owner who may act keeps one, until it is deleted itself."""

    reason = Reason.REASON_LAST_OWNER


class UserState(enum.StrEnum):
    """Whether the user may use anything."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


class Role(enum.StrEnum):
    """What a user is in the workspace."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    SERVICE = "service"

    @property
    def implies_use(self) -> bool:
        """Whether who has it may use every agent of the workspace without a grant."""
        return self in (Role.OWNER, Role.ADMIN)


class UserKey(NamedTuple):
    """Which user."""

    workspace_id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class User:
    """A person or machine. Only a machine may be without an e-mail address; empty means none."""

    kind: ClassVar[str] = "user"

    workspace_id: str
    user_id: str
    email: str
    identity_id: str
    display_name: str
    role: Role
    state: UserState
    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        if not self.email and self.role is not Role.SERVICE:
            raise InvalidField("user.email", "is required, except for a user whose role is ROLE_SERVICE")

    @property
    def path(self) -> tuple[str, ...]:
        return (self.workspace_id, self.user_id)

    @property
    def runs_workspace(self) -> bool:
        """Whether this is an owner who may act."""
        return self.role is Role.OWNER and self.state is UserState.ACTIVE


def folded_email(value: str, field: str) -> str:
    """The address in the form in which two that differ only in case are one; empty stays empty."""
    folded = value.casefold()
    if folded and not _EMAIL(folded):
        raise InvalidField(field, "is not an e-mail address")
    if len(folded.encode()) > EMAIL_BYTES_MAX:  # folding may lengthen it
        raise InvalidField(field, f"has more than {EMAIL_BYTES_MAX} bytes")
    return folded


class UserFilters(NamedTuple):
    """Which users of a workspace to list; None lets all pass."""

    role: str | None
    state: str | None
    email: str | None
    identity_id: str | None


class Users(Resources[User], Protocol):
    """The users that are kept.

    Raises UserUnknown; what is written may raise UserExists, EmailTaken, IdentityTaken; an update or a deletion LastOwner.
    Address and identity of a deleted one are free for others; its grants count again when it is restored.
    """
