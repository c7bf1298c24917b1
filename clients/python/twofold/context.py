"""The context provider of agent frameworks: `invoking` before the agent runs, `invoked` after it."""

import asyncio
import warnings
from collections.abc import Iterable

import grpc

from twofold import refusals
from twofold.client import Twofold
from twofold.errors.v1.reason_pb2 import Reason
from twofold.ids import new_id
from twofold.memory.v1 import context_pb2 as pb
from twofold.memory.v1.conversation_pb2 import TurnUsage
from twofold.memory.v1.message_pb2 import Durability, Message, ReadLevel

# While the exchange before is still on its way into Postgres.
_PAUSES_S = (0.2, 0.4, 0.8)


class ContextUnavailableWarning(UserWarning):
    """The memory service does not answer, and the agent runs without its context."""


class ContextProvider:
    """The memory of one conversation, for the code that runs its agent.

    It keeps the conversation's last thread_token and passes it by itself, so that each context holds what this provider
    has seen and stored, and the copy alone may answer; and an exchange behind one that was only journaled says so, so that
    it cannot overtake it. With `stateless_when_unavailable` an unreachable memory service
    gives an empty context and a ContextUnavailableWarning instead of an error; an exchange that cannot be kept is always
    an error. Not for use by several tasks at once.
    """

    def __init__(
        self,
        client: Twofold,
        workspace_id: str,
        thread_id: str,
        user_id: str = "",
        *,
        message_count_max: int = 0,
        token_count_max: int = 0,
        stateless_when_unavailable: bool = False,
    ) -> None:
        self._client = client
        self._asked = pb.InvokingRequest(
            workspace_id=workspace_id,
            thread_id=thread_id,
            user_id=user_id,
            message_count_max=message_count_max,
            token_count_max=token_count_max,
        )
        self._stateless_when_unavailable = stateless_when_unavailable
        self._thread_token = b""
        # The token of the last exchange, as long as it may not be in Postgres.
        self._after_token = b""

    async def invoking(self, *, timeout_s: float | None = None) -> pb.InvokingResponse:
        """What the agent should know: messages, a summary of earlier ones, preferences, documents; all also as one text."""
        try:
            context = await self._context(timeout_s)
        except grpc.aio.AioRpcError as error:
            if not self._stateless_when_unavailable or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            warnings.warn(
                f"no context for thread {self._asked.thread_id!r}: {error.details()}",
                ContextUnavailableWarning,
                stacklevel=2,
            )
            return pb.InvokingResponse()
        self._thread_token = context.thread_token
        return context

    async def invoked(
        self,
        request_messages: Iterable[Message],
        response_messages: Iterable[Message] = (),
        *,
        request_id: str = "",
        usage: TurnUsage | None = None,
        timeout_s: float | None = None,
    ) -> pb.InvokedResponse:
        """Keeps the exchange as one turn. With the `request_id` of a call whose answer was lost, it is kept once."""
        request = pb.InvokedRequest(
            workspace_id=self._asked.workspace_id,
            thread_id=self._asked.thread_id,
            user_id=self._asked.user_id,
            request_id=request_id or new_id(),
            request_messages=request_messages,
            response_messages=response_messages,
            usage=usage,
            after_token=self._after_token,
        )
        kept = await self._kept(request, timeout_s)
        self._thread_token = kept.thread_token
        self._after_token = kept.thread_token if kept.durability == Durability.DURABILITY_JOURNALED else b""
        return kept

    async def _kept(self, request: pb.InvokedRequest, timeout_s: float | None) -> pb.InvokedResponse:
        for pause_s in _PAUSES_S:
            try:
                return await self._client.context.Invoked(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                if refusals.reason(error) != Reason.REASON_TURN_ON_ITS_WAY:
                    raise
            await asyncio.sleep(pause_s)
        return await self._client.context.Invoked(request, timeout=timeout_s)

    async def _context(self, timeout_s: float | None) -> pb.InvokingResponse:
        if self._thread_token:
            try:
                return await self._client.context.Invoking(self._request(self._thread_token), timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                if refusals.reason(error) != Reason.REASON_HISTORY_CHANGED:
                    raise
                self._thread_token = b""
        return await self._client.context.Invoking(self._request(b""), timeout=timeout_s)

    def _request(self, thread_token: bytes) -> pb.InvokingRequest:
        request = pb.InvokingRequest()
        request.CopyFrom(self._asked)
        request.thread_token = thread_token
        request.read_level = ReadLevel.READ_LEVEL_AT_LEAST if thread_token else ReadLevel.READ_LEVEL_VERIFIED
        return request
