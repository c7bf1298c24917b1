"""The memory, as the router asks it: a turn opened, its context, its answer kept, and what is owed for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc

from twofold.memory.v1 import context_pb2_grpc, conversation_pb2_grpc, turn_pb2_grpc
from twofold_chassis import peers
from twofold_chassis.refusals import InvalidArgument, NotFound, Reason, Refusal, Unavailable
from twofold_router import wire_memory as wire
from twofold_router.agents import AgentFailed, Answer
from twofold_router.conversations import (
    Context,
    Debt,
    Exchange,
    Hold,
    KeptTurn,
    Opened,
    Opening,
    Policy,
    Receipt,
    TurnKey,
    Wanted,
)
from twofold_router.ledger import Owed

_PEER = "memory"
_UNKNOWN = (Reason.REASON_CONVERSATION_UNKNOWN, Reason.REASON_TURN_UNKNOWN)
# An answered turn is worth waiting for a memory that is being restarted.
_PAUSES_S = (0.2, 1.0, 3.0)
# An attempt without an answer may use this part of the time for keeping, and no more: then it is asked again.
_ATTEMPT_SHARE = 1 / 3
_PASSING = (Reason.REASON_BUSY, Reason.REASON_OVERLOADED, Reason.REASON_TURN_ON_ITS_WAY)
_NOTHING_DONE = (*_PASSING, Reason.REASON_DRAINING)
_LET_GO_S = 1e-6

Answered = TypeVar("Answered")


class MemoryConversations:
    """Conversations, kept by memory. Turns are held `lease_s` without a sign of life; to keep one is tried for `keep_s`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        timeout_s: float,
        keep_s: float,
        lease_s: float,
        pauses_s: Sequence[float] = _PAUSES_S,
    ) -> None:
        self._contexts = context_pb2_grpc.ContextServiceStub(channel)
        self._conversations = conversation_pb2_grpc.ConversationServiceStub(channel)
        self._turns = turn_pb2_grpc.TurnServiceStub(channel)
        self._timeout_s = timeout_s
        self._keep_s = keep_s
        self._lease_s = lease_s
        self._pauses_s = pauses_s

    async def context(self, wanted: Wanted) -> Context:
        """What is known. Refuses if the conversation is deleted or another user's, and if it cannot be read."""
        request = wire.invoking_request(wanted)
        return wire.context(await self._asked(self._contexts.Invoking, request))

    async def begin(self, opening: Opening) -> Opened:
        """Opens the turn. Refuses as memory does: with Unavailable where that is away, and `outcome`, if it says so."""
        waits_s = opening.queue_wait_s if opening.policy is Policy.QUEUE else 0.0
        request = wire.begin_request(opening)
        for pause_s in (*self._pauses_s[:1], None):
            asked = self._turns.BeginTurn(request, timeout=self._timeout_s + waits_s, metadata=peers.metadata())
            try:
                return wire.opened(opening, await peers.asked(_PEER, asked))
            except Refusal as refusal:
                if pause_s is None or refusal.reason not in _NOTHING_DONE:
                    raise
            await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    async def heartbeat(self, hold: Hold, agent_id: str, partial: str) -> None:
        """The turn is alive; this is its answer so far."""
        await self._asked(self._turns.HeartbeatTurn, wire.heartbeat_request(hold, agent_id, partial, self._lease_s))

    async def let_go(self, hold: Hold) -> None:
        """The turn stays open, and is anybody's who goes on with it."""
        await self._asked(self._turns.HeartbeatTurn, wire.heartbeat_request(hold, "", "", _LET_GO_S))

    async def commit(self, hold: Hold, answer: Answer, debt: Debt) -> Receipt:
        """Closes the turn with its answer; the same once more is kept once. Refuses as `keep` does, and as superseded."""
        request = wire.commit_request(hold, answer, debt)
        return wire.closed(await self._kept(self._turns.CommitTurn, request))

    async def abort(self, hold: Hold, partial: str, cause: str, agent_id: str, debt: Debt | None) -> Receipt:
        """Closes the turn as interrupted, with what there is of an answer. Likewise."""
        request = wire.abort_request(hold, partial, cause, agent_id, debt)
        return wire.closed(await self._kept(self._turns.AbortTurn, request))

    async def holder(self, turn: TurnKey, user_id: str) -> str | None:
        """Who holds the turn, if it is open."""
        request = wire.open_turn_request(turn, user_id)
        try:
            found = await self._asked(self._turns.GetOpenTurn, request)
        except NotFound as refusal:
            if refusal.reason in _UNKNOWN:
                return None
            raise
        return found.holder if found.turn_id == turn.operation_id else None

    async def find(self, turn: TurnKey, user_id: str) -> KeptTurn | None:
        """The turn, if it is kept in a conversation that this user may see."""
        request = wire.get_turn_request(turn, user_id)
        try:
            return wire.kept_turn(await self._asked(self._conversations.GetTurn, request))
        except NotFound as refusal:
            if refusal.reason in _UNKNOWN:
                return None
            raise

    async def keep(self, exchange: Exchange) -> Receipt:
        """Keeps the exchange; the same one again is kept once.

        Asked again while memory cannot: the exchange carries the operation's id, so twice is harmless. A refusal for want of
        memory says in `outcome` what became of all attempts: NOT_STORED, or UNKNOWN if one of them may have been heard.
        """
        return wire.receipt(await self._kept(self._contexts.Invoked, wire.invoked_request(exchange)))

    async def owed(self, page_token: str, count: int, min_age_s: float) -> tuple[Sequence[Owed], str]:
        """A page of the usage that the ledger may not know yet, of all workspaces; and the token of the next."""
        request = wire.unrecorded_request(page_token, count, min_age_s)
        page = await self._asked(self._turns.ListUnrecordedUsage, request)
        return [wire.owed(form) for form in page.usages], page.next_page_token

    async def acknowledge(self, turns: Sequence[TurnKey]) -> None:
        """The ledger has what these consumed."""
        await self._asked(self._turns.AcknowledgeUsage, wire.acknowledge_request(turns))

    async def _asked(self, rpc: Callable[..., Awaitable[Answered]], request: object) -> Answered:
        asked = rpc(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        return await peers.asked(_PEER, asked)

    async def _kept(self, rpc: Callable[..., Awaitable[Answered]], request: object) -> Answered:
        ends_at = time.monotonic() + self._keep_s
        pauses, unknown = iter(self._pauses_s), False
        while True:
            attempt_s = min(self._timeout_s, self._keep_s * _ATTEMPT_SHARE, ends_at - time.monotonic())
            try:
                return await peers.asked(_PEER, rpc(request, timeout=attempt_s, metadata=peers.metadata()))
            except InvalidArgument as refusal:
                # What the caller sent has been judged before; this is about what the agent said.
                raise AgentFailed(f"memory does not keep what the agent answered: {refusal.message}") from None
            except Refusal as refusal:
                if not _may_pass(refusal):
                    raise
                unknown = unknown or _may_be_stored(refusal)
                refusal.metadata["outcome"] = "UNKNOWN" if unknown else "NOT_STORED"
                pause_s = next(pauses, None)
                if pause_s is None or time.monotonic() + pause_s >= ends_at:
                    raise
            await asyncio.sleep(pause_s)


def _may_pass(refusal: Refusal) -> bool:
    return isinstance(refusal, Unavailable) or refusal.reason in _PASSING


def _may_be_stored(refusal: Refusal) -> bool:
    # What memory says of itself goes first: a call that was cut off while it drained may have done its work.
    outcome = refusal.metadata.get("outcome")
    return outcome != "NOT_STORED" if outcome else refusal.reason not in _NOTHING_DONE
