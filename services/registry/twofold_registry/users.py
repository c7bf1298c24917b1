"""Users: the people and machines of a workspace."""

import enum
import re
from dataclasses import dataclass
from typing import ClassVar, Protocol

from twofold_chassis.refusals import AlreadyExists, InvalidField, NotFound, Reason
from twofold_chassis.requests import Attempt
from twofold_registry.resources import Answer, Edit, Page, Read, Stored

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


@dataclass(frozen=True, slots=True)
class UserKey:
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

    def __post_init__(self) -> None:
        if not self.email and self.role is not Role.SERVICE:
            raise InvalidField("user.email", "is required, except for a user whose role is ROLE_SERVICE")

    @property
    def path(self) -> tuple[str, ...]:
        return (self.workspace_id, self.user_id)


def folded_email(value: str, field: str) -> str:
    """The address in the form in which two that differ only in case are one; empty stays empty."""
    folded = value.casefold()
    if folded and not _EMAIL(folded):
        raise InvalidField(field, "is not an e-mail address")
    if len(folded.encode()) > EMAIL_BYTES_MAX:  # folding may lengthen it
        raise InvalidField(field, f"has more than {EMAIL_BYTES_MAX} bytes")
    return folded


class Users(Protocol):
    """The users that are kept. Deleted ones, and those of deleted workspaces, are unknown to every method."""

    async def create(self, user: User, attempt: Attempt, answer: Answer[Stored[User]]) -> bytes:
        """Raises WorkspaceUnknown, UserExists, EmailTaken, IdentityTaken."""
        ...

    async def get(self, key: UserKey) -> Read[Stored[User]]:
        """Raises UserUnknown."""
        ...

    async def list(self, workspace_id: str, after: str, size: int) -> Page[Stored[User]]:
        """Up to `size` users whose ids follow `after`, in the order of their ids. Raises WorkspaceUnknown."""
        ...

    async def update(self, key: UserKey, edit: Edit, etag: str, attempt: Attempt, answer: Answer[Stored[User]]) -> bytes:
        """Raises UserUnknown, EtagMismatch, EmailTaken, IdentityTaken."""
        ...

    async def delete(self, key: UserKey, etag: str, attempt: Attempt, answer: Answer[None]) -> bytes:
        """Hides the user; the address and the identity become free. Raises UserUnknown, EtagMismatch."""
        ...
