"""Workspaces: the tenants. Everything else belongs to exactly one of them."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from twofold_chassis.refusals import AlreadyExists, NotFound, Reason
from twofold_chassis.requests import Attempt
from twofold_registry.resources import Answer, Edit, Page, Read, Stored


class WorkspaceUnknown(NotFound):
    """There is no such workspace, or it is deleted."""

    reason = Reason.REASON_WORKSPACE_UNKNOWN

    def __init__(self, workspace_id: str) -> None:
        super().__init__(f"no workspace {workspace_id!r}", workspace_id=workspace_id)


class WorkspaceExists(AlreadyExists):
    """The id is taken, by a deleted workspace too."""

    reason = Reason.REASON_WORKSPACE_EXISTS

    def __init__(self, workspace_id: str) -> None:
        super().__init__(f"the workspace id {workspace_id!r} is taken", workspace_id=workspace_id)


@dataclass(frozen=True, slots=True)
class WorkspaceSettings:
    """The rules a workspace sets for itself."""

    allowed_url_suffixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Workspace:
    """A tenant. `namespace` is empty where its agents do not run in Kubernetes."""

    kind: ClassVar[str] = "workspace"

    workspace_id: str
    display_name: str
    namespace: str
    settings: WorkspaceSettings

    @property
    def path(self) -> tuple[str, ...]:
        return (self.workspace_id,)


class Workspaces(Protocol):
    """The workspaces that are kept. Deleted ones are unknown to every method, yet their ids stay taken."""

    async def create(self, workspace: Workspace, attempt: Attempt, answer: Answer[Stored[Workspace]]) -> bytes:
        """Raises WorkspaceExists."""
        ...

    async def get(self, workspace_id: str) -> Read[Stored[Workspace]]:
        """Raises WorkspaceUnknown."""
        ...

    async def list(self, after: str, size: int) -> Page[Stored[Workspace]]:
        """Up to `size` workspaces whose ids follow `after`, in the order of their ids."""
        ...

    async def update(
        self, workspace_id: str, edit: Edit, etag: str, attempt: Attempt, answer: Answer[Stored[Workspace]]
    ) -> bytes:
        """Raises WorkspaceUnknown, EtagMismatch."""
        ...

    async def delete(self, workspace_id: str, etag: str, attempt: Attempt, answer: Answer[None]) -> bytes:
        """Hides the workspace and all that is in it. Raises WorkspaceUnknown, EtagMismatch."""
        ...
