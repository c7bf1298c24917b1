"""Terms: what routers keep to besides permissions, put together from what a workspace and a user say."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from twofold_registry.caps import Told
from twofold_registry.resources import Read
from twofold_registry.revisions import Revision
from twofold_registry.workspaces import Limit, sorted_limits


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a user may use what was granted. `cap` is None while no caps were ever set."""

    limits: tuple[Limit, ...]
    cap: Told | None
    allowed_url_suffixes: tuple[str, ...]
    namespace: str
    read_at: datetime


class AllTerms(Protocol):
    """The terms as they are kept."""

    async def get(self, workspace_id: str, user_id: str | None, least: Revision | None) -> Read[Terms]:
        """Those of a user; the workspace's alone without one, or if there is no such user.

        Raises WorkspaceUnknown, RevisionNotReached, HistoryChanged.
        """
        ...


def in_force(of_workspace: Iterable[Limit], of_user: Iterable[Limit]) -> tuple[Limit, ...]:
    """A user's own limit takes the place of the workspace's of the same kind; an amount of 0 means that there is none."""
    chosen = {limit.kind: limit for limit in of_workspace} | {limit.kind: limit for limit in of_user}
    return sorted_limits(limit for limit in chosen.values() if limit.amount)
