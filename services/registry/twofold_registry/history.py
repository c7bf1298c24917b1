"""The history of all metadata: its changes one by one, in the order of their commits."""

import enum
from typing import NamedTuple


class ItemKind(enum.StrEnum):
    """What a change is about; whoever caches something drops it when one of the kinds it rests on changes."""

    WORKSPACE = "workspace"
    """Everything of the workspace may have changed: it was created, deleted, restored, or its state or settings."""
    PLAN = "plan"
    """Plan and limits of the workspace, or what is left of its caps."""
    USER = "user"
    AGENT = "agent"
    """The agent was created, deleted or restored: permissions on it may have changed."""
    ROUTE = "route"
    """Something of the agent changed that no permission rests on: URLs, state, price, settings, or what was seen of it."""
    PERMISSION = "permission"


class Item(NamedTuple):
    """One thing that a revision changed. `after` is the resource's message of the contract, None where it is gone."""

    kind: ItemKind
    user_id: str = ""
    agent_id: str = ""
    after: bytes | None = None
