"""Conversations: what was said before a turn, and what is kept of it."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol

from twofold_chassis.refusals import Aborted, Reason
from twofold_router.agents import Answer, Message, ToolCall, Usage


class TurnInterrupted(Aborted):
    """The operation has ended before, without an answer."""

    reason = Reason.REASON_TURN_INTERRUPTED


class Policy(Enum):
    """What becomes of a turn that is to be opened while another one is open on the conversation."""

    REJECT = "reject"
    QUEUE = "queue"
    TAKE_OVER = "take over"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which context a turn needs. `open_calls`: with the calls of the newest answer, whose results the turn brings."""

    workspace_id: str
    thread_id: str | None
    user_id: str
    messages_max: int
    tokens_max: int
    open_calls: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """What is known before a turn. `source` and `completeness` are memory's numbers of them, passed through; 0 is unset.

    `summary` tells of what was said before the messages; empty if there is none. `documents` are titles (or ids) and
    addresses, which may be empty.
    """

    messages: tuple[Message, ...]
    preferences: tuple[tuple[str, str], ...]
    summary: str
    documents: tuple[tuple[str, str], ...]
    text: str
    source: int
    completeness: int


@dataclass(frozen=True, slots=True)
class TurnKey:
    """Which turn: its id is that of the operation."""

    workspace_id: str
    thread_id: str
    operation_id: str


@dataclass(frozen=True, slots=True)
class Opening:
    """A turn that is to be opened: what is said in it, and who will hold it, for how long without a sign of life."""

    turn: TurnKey
    user_id: str
    words: tuple[Message, ...]
    holder: str
    lease_s: float
    policy: Policy
    queue_wait_s: float


@dataclass(frozen=True, slots=True)
class Hold:
    """A turn that is open, and what proves its holder."""

    turn: TurnKey
    fence: int


@dataclass(frozen=True, slots=True)
class Opened:
    """The turn as it is. `hold` is None if it has been closed; it is `holder`'s, who may be another one."""

    hold: Hold | None
    holder: str


@dataclass(frozen=True, slots=True)
class Debt:
    """What a turn consumed, and how that is to stand in the ledger: memory keeps it until it does."""

    event_id: str
    user_id: str
    agent_id: str
    event_time: datetime
    usage: Usage


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is kept of a turn that was not opened. `cause` is why its answer is not whole; empty if it is."""

    turn: TurnKey
    user_id: str
    agent_id: str
    words: tuple[Message, ...]
    answer: Answer | None
    usage: Usage | None
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """That a turn is kept: where it stands, since when, how safe (`durability`: memory's number), and how new that is.

    One that waits in memory's journal has no place and no time yet.
    """

    first_seq: int
    last_seq: int
    create_time: datetime | None
    durability: int
    thread_token: bytes


@dataclass(frozen=True, slots=True)
class KeptTurn:
    """A turn that was kept by an earlier call. `agent_id` is None where no agent is named.

    `interrupted`: it did not come to its end; then `cause` is why, if that is known.
    """

    receipt: Receipt
    words: tuple[Message, ...]
    agent_id: str | None
    text: str
    calls: tuple[ToolCall, ...]
    finish_reason: str
    usage: Usage | None
    interrupted: bool = False
    cause: str = ""


class Conversations(Protocol):
    """The owner of the conversations."""

    async def context(self, wanted: Wanted) -> Context:
        """What is known. Refuses if the conversation is deleted, another user's, or cannot be read: never empty instead."""
        ...

    async def begin(self, opening: Opening) -> Opened:
        """Opens the turn: its words are safe then. Refuses as memory does, with `outcome` where that is away."""
        ...

    async def heartbeat(self, hold: Hold, agent_id: str, partial: str) -> None:
        """The turn is alive; this is its answer so far."""
        ...

    async def let_go(self, hold: Hold) -> None:
        """The turn stays open, and is anybody's who goes on with it."""
        ...

    async def commit(self, hold: Hold, answer: Answer, debt: Debt) -> Receipt:
        """Closes the turn with its answer; the same once more is kept once. Refuses as `keep` does, and as superseded."""
        ...

    async def abort(self, hold: Hold, partial: str, cause: str, agent_id: str, debt: Debt | None) -> Receipt:
        """Closes the turn as interrupted, with what there is of an answer. Likewise."""
        ...

    async def holder(self, turn: TurnKey, user_id: str) -> str | None:
        """Who holds the turn, if it is open."""
        ...

    async def find(self, turn: TurnKey, user_id: str) -> KeptTurn | None:
        """The turn, if it is kept in a conversation that this user may see."""
        ...

    async def keep(self, exchange: Exchange) -> Receipt:
        """Keeps the exchange; the same one again is kept once.

        A refusal for want of memory says in `outcome` whether it may be kept all the same (UNKNOWN) or is not (NOT_STORED).
        """
        ...
