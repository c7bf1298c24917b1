"""The memory, as the router asks it: the context before a turn, and the exchange after it."""

import asyncio
import contextlib
from collections.abc import Sequence

import grpc

from twofold.memory.v1 import context_pb2, context_pb2_grpc, conversation_pb2_grpc
from twofold_chassis import peers
from twofold_chassis.refusals import NotFound, Reason, Unavailable
from twofold_router import wire_peers as wire
from twofold_router.conversations import Context, Exchange, KeptTurn, Receipt, TurnKey, Wanted

_PEER = "memory"
_UNKNOWN = (Reason.REASON_CONVERSATION_UNKNOWN, Reason.REASON_TURN_UNKNOWN)
# An answered turn is worth waiting for a memory that is being restarted.
_PAUSES_S = (0.2, 1.0, 3.0)


class MemoryConversations:
    """Conversations, kept by memory."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float, pauses_s: Sequence[float] = _PAUSES_S) -> None:
        self._contexts = context_pb2_grpc.ContextServiceStub(channel)
        self._conversations = conversation_pb2_grpc.ConversationServiceStub(channel)
        self._timeout_s = timeout_s
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

        Asked again while memory does not answer: the exchange carries the operation's id, so twice is harmless.
        """
        request = wire.invoked_request(exchange)
        for pause_s in self._pauses_s:
            with contextlib.suppress(Unavailable):
                return await self._invoked(request)
            await asyncio.sleep(pause_s)
        return await self._invoked(request)

    async def _invoked(self, request: context_pb2.InvokedRequest) -> Receipt:
        asked = self._contexts.Invoked(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        return wire.receipt(await peers.asked(_PEER, asked))
