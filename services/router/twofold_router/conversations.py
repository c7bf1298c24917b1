"""Conversations: what was said before a turn, and what is kept of it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from twofold_router.agents import Answer, Message, Usage


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which context a turn needs."""

    workspace_id: str
    thread_id: str | None
    user_id: str
    messages_max: int
    tokens_max: int


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
class Exchange:
    """What is kept of a turn."""

    turn: TurnKey
    user_id: str
    agent_id: str
    message: str
    answer: Answer
    usage: Usage


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
    """A turn that was kept by an earlier call. `message` and `agent_id` are None if it is no exchange with an agent."""

    receipt: Receipt
    message: str | None
    agent_id: str | None
    text: str
    finish_reason: str
    usage: Usage


class Conversations(Protocol):
    """The owner of the conversations."""

    async def context(self, wanted: Wanted) -> Context:
        """What is known. Refuses if the conversation is deleted, another user's, or cannot be read: never empty instead."""
        ...

    async def find(self, turn: TurnKey, user_id: str) -> KeptTurn | None:
        """The turn, if it is kept in a conversation that this user may see."""
        ...

    async def keep(self, exchange: Exchange) -> Receipt:
        """Keeps the exchange; the same one again is kept once.

        A refusal for want of memory says in `outcome` whether it may be kept all the same (UNKNOWN) or is not (NOT_STORED).
        """
        ...
