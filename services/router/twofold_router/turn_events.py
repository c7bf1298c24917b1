"""What is told of a turn while it runs."""

from dataclasses import dataclass

from twofold_router.agents import ToolCall, Usage
from twofold_router.conversations import Receipt
from twofold_router.copies import Source


@dataclass(frozen=True, slots=True)
class Started:
    """The turn may run. `context_source` and `context_completeness` are memory's numbers of them; 0 is unset.

    `route_source` is None where no route was asked for.
    """

    operation_id: str
    router: str
    context_messages: int = 0
    context_preferences: int = 0
    context_source: int = 0
    context_completeness: int = 0
    route_source: Source | None = None
    replayed: bool = False
    unheld: bool = False
    resolve_s: float = 0.0
    context_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """The agent could not be dialled, so often and for so long; it is tried again."""

    attempts: int
    waited_s: float
    wait_max_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer's text, and how many bytes of it come before."""

    text: str
    offset: int


@dataclass(frozen=True, slots=True)
class Calls:
    """The tools that the agent calls."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class Completed:
    """The turn is over. Without a receipt it was not kept."""

    finish_reason: str
    usage: Usage
    usage_recorded: bool
    receipt: Receipt | None
    first_token_s: float = 0.0
    agent_s: float = 0.0
    keep_s: float = 0.0


Event = Started | Waiting | Delta | Calls | Completed
