"""The memory, as the router asks it: the context before a turn, and the exchange after it."""

import asyncio
import time
from collections.abc import Sequence

import grpc

from twofold.memory.v1 import context_pb2, context_pb2_grpc, conversation_pb2_grpc
from twofold_chassis import peers
from twofold_chassis.refusals import InvalidArgument, NotFound, Reason, Refusal, Unavailable
from twofold_router import wire_peers as wire
from twofold_router.agents import AgentFailed
from twofold_router.conversations import Context, Exchange, KeptTurn, Receipt, TurnKey, Wanted

_PEER = "memory"
_UNKNOWN = (Reason.REASON_CONVERSATION_UNKNOWN, Reason.REASON_TURN_UNKNOWN)
# An answered turn is worth waiting for a memory that is being restarted.
_PAUSES_S = (0.2, 1.0, 3.0)
# An attempt without an answer may use this part of the time for keeping, and no more: then it is asked again.
_ATTEMPT_SHARE = 1 / 3
_NOTHING_DONE = (Reason.REASON_BUSY, Reason.REASON_OVERLOADED, Reason.REASON_DRAINING)


class MemoryConversations:
    """Conversations, kept by memory. An exchange is given up after `keep_s`."""

    def __init__(
        self, channel: grpc.aio.Channel, *, timeout_s: float, keep_s: float, pauses_s: Sequence[float] = _PAUSES_S
    ) -> None:
        self._contexts = context_pb2_grpc.ContextServiceStub(channel)
        self._conversations = conversation_pb2_grpc.ConversationServiceStub(channel)
        self._timeout_s = timeout_s
        self._keep_s = keep_s
        self._pauses_s = pauses_s

    async def context(self, wanted: Wanted) -> Context:
        """What is known. Refuses if the conversation is deleted or another user's, and if it cannot be read."""
        request = wire.invoking_request(wanted)
        asked = self._contexts.Invoking(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        return wire.context(await peers.asked(_PEER, asked))

    async def find(self, turn: TurnKey, user_id: str) -> KeptTurn | None:
        """The turn, if it is kept in a conversation that this user may see."""
        request = wire.get_turn_request(turn, user_id)
        asked = self._conversations.GetTurn(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        try:
            return wire.kept_turn(await peers.asked(_PEER, asked))
        except NotFound as refusal:
            if refusal.reason in _UNKNOWN:
                return None
            raise

    async def keep(self, exchange: Exchange) -> Receipt:
        """Keeps the exchange; the same one again is kept once.

        Asked again while memory cannot: the exchange carries the operation's id, so twice is harmless. A refusal for want of
        memory says in `outcome` what became of all attempts: NOT_STORED, or UNKNOWN if one of them may have been heard.
        """
        request = wire.invoked_request(exchange)
        ends_at = time.monotonic() + self._keep_s
        pauses, unknown = iter(self._pauses_s), False
        while True:
            try:
                return await self._invoked(request, ends_at - time.monotonic())
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

    async def _invoked(self, request: context_pb2.InvokedRequest, left_s: float) -> Receipt:
        attempt_s = min(self._timeout_s, self._keep_s * _ATTEMPT_SHARE, left_s)
        asked = self._contexts.Invoked(request, timeout=attempt_s, metadata=peers.metadata())
        return wire.receipt(await peers.asked(_PEER, asked))


def _may_pass(refusal: Refusal) -> bool:
    return isinstance(refusal, Unavailable) or refusal.reason in (Reason.REASON_BUSY, Reason.REASON_OVERLOADED)


def _may_be_stored(refusal: Refusal) -> bool:
    # What memory says of itself goes first: a call that was cut off while it drained may have done its work.
    outcome = refusal.metadata.get("outcome")
    return outcome != "NOT_STORED" if outcome else refusal.reason not in _NOTHING_DONE
