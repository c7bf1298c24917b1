"""Who asks routers all the time, and writes down what it was told and whether it may rely on it."""

import asyncio
import random
from collections.abc import Sequence
from typing import NamedTuple

import grpc

from benchmarks.chaos.control.history import Answer, History, Pair, Token, Told
from benchmarks.chaos.control.writers import PAIRS
from twofold import refusals
from twofold.errors.v1.reason_pb2 import Reason
from twofold.router.v1 import routing_pb2
from twofold.router.v1.routing_pb2_grpc import RoutingServiceStub
from twofold_chassis.clocks import boot_s

# Who waits long for one answer sees few: most do not.
CALLS_S = (0.1, 0.1, 0.1, 0.3, 0.3, 2.5)
# Nobody is stopped for so long: who then has no answer was forgotten.
_STUCK_S = 20.0
_THINKING_S = (0.0, 0.03)
_CHECKS, _BATCHES, _WITH_TOKEN = 0.25, 0.15, 0.2
_PAIRS_AT_ONCE = 6

_Code = grpc.StatusCode
_CODES = {
    (_Code.PERMISSION_DENIED, Reason.REASON_NOT_PERMITTED): Told.DENIED,
    (_Code.NOT_FOUND, Reason.REASON_AGENT_UNKNOWN): Told.UNKNOWN,
    (_Code.FAILED_PRECONDITION, Reason.REASON_AGENT_GONE): Told.GONE,
    (_Code.FAILED_PRECONDITION, Reason.REASON_AGENT_NOT_PUBLISHED): Told.UNPUBLISHED,
    (_Code.ABORTED, Reason.REASON_HISTORY_CHANGED): Told.HISTORY,
    (_Code.RESOURCE_EXHAUSTED, Reason.REASON_OVERLOADED): Told.OVERLOADED,
    (_Code.UNAVAILABLE, Reason.REASON_PEER_UNAVAILABLE): Told.UNAVAILABLE,
    (_Code.UNAVAILABLE, Reason.REASON_STORE_UNAVAILABLE): Told.UNAVAILABLE,
    (_Code.UNAVAILABLE, Reason.REASON_REVISION_NOT_REACHED): Told.UNAVAILABLE,
    (_Code.UNAVAILABLE, Reason.REASON_DRAINING): Told.NOTHING,
}
_REASONS = {reason: told for (_, reason), told in _CODES.items()}
# What gRPC says by itself when nobody answers, or its caller has no more time.
_NOBODY = (_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.CANCELLED)


class _Asked(NamedTuple):
    """One call: with what token, when it was sent, and how long an answer is waited for."""

    token: Token | None
    sent: float
    timeout: float


class Caller:
    """One caller of one router."""

    def __init__(
        self,
        router: int,
        channel: grpc.aio.Channel,
        history: History,
        chance: random.Random,
        workspace: str,
        tokens: Sequence[tuple[Token, bytes]],
    ) -> None:
        self._router = router
        self._stub = RoutingServiceStub(channel)
        self._history = history
        self._chance = chance
        self._workspace = workspace
        self._tokens = tokens

    async def run(self, enough: asyncio.Event) -> None:
        """Asks until it is enough."""
        while not enough.is_set():
            await self.ask()
            await asyncio.sleep(self._chance.uniform(*_THINKING_S))

    async def ask(self) -> Sequence[Answer]:
        """One call, of any sort."""
        drawn = self._chance.random()
        token, sealed = None, b""
        if self._tokens and self._chance.random() < _WITH_TOKEN:
            token, sealed = self._chance.choice(self._tokens)
        pairs = self._chance.sample(PAIRS, _PAIRS_AT_ONCE) if drawn < _BATCHES else [self._chance.choice(PAIRS)]
        asked = _Asked(token, boot_s(), self._chance.choice(CALLS_S))
        try:
            if drawn < _BATCHES:
                answers = await self._resolve_all(asked, pairs, sealed)
            elif drawn < _BATCHES + _CHECKS:
                answers = [await self._check(asked, pairs[0], sealed)]
            else:
                answers = [await self._resolve(asked, pairs[0], sealed)]
        except grpc.aio.AioRpcError as error:
            is_check = _BATCHES <= drawn < _BATCHES + _CHECKS
            answers = [self._refused(asked, pair, error, is_check=is_check) for pair in pairs]
        if boot_s() - asked.sent > _STUCK_S:
            self._history.stuck.append(f"router {self._router} said nothing for {_STUCK_S:g} s")
        self._history.answers += answers
        return answers

    async def _resolve(self, asked: _Asked, pair: Pair, sealed: bytes) -> Answer:
        request = routing_pb2.ResolveRequest(
            workspace_id=self._workspace, user_id=pair.user, agent_id=pair.agent, min_revision_token=sealed
        )
        return self._allowed(asked, pair, await self._stub.Resolve(request, timeout=asked.timeout))

    async def _check(self, asked: _Asked, pair: Pair, sealed: bytes) -> Answer:
        request = routing_pb2.CheckRequest(
            workspace_id=self._workspace, user_id=pair.user, agent_id=pair.agent, min_revision_token=sealed
        )
        answer = await self._stub.Check(request, timeout=asked.timeout)
        came = boot_s()
        return Answer(
            self._router,
            pair,
            asked.sent,
            came,
            Told.ALLOWED if answer.allowed else Told.DENIED,
            only_permission=True,
            relied=came < asked.sent + answer.valid_for.ToMicroseconds() / 1e6,
            token=asked.token,
            source=routing_pb2.RouteSource.Name(answer.source),
        )

    async def _resolve_all(self, asked: _Asked, pairs: Sequence[Pair], sealed: bytes) -> list[Answer]:
        told = [routing_pb2.UserAgent(user_id=pair.user, agent_id=pair.agent) for pair in pairs]
        request = routing_pb2.BatchResolveRequest(workspace_id=self._workspace, pairs=told, min_revision_token=sealed)
        results = (await self._stub.BatchResolve(request, timeout=asked.timeout)).results
        return [
            self._allowed(asked, pair, result.answer)
            if result.HasField("answer")
            else self._denied(asked, pair, result.refusal)
            for pair, result in zip(pairs, results, strict=True)
        ]

    def _allowed(self, asked: _Asked, pair: Pair, answer: routing_pb2.ResolveResponse) -> Answer:
        came = boot_s()
        return Answer(
            self._router,
            pair,
            asked.sent,
            came,
            Told.ALLOWED,
            url=answer.url,
            relied=came < asked.sent + answer.valid_for.ToMicroseconds() / 1e6,
            token=asked.token,
            source=routing_pb2.RouteSource.Name(answer.permission_source),
        )

    def _denied(self, asked: _Asked, pair: Pair, refusal: routing_pb2.ResolveRefusal) -> Answer:
        told = _REASONS.get(refusal.reason, Told.WRONG)
        if told is Told.UNAVAILABLE and not refusal.HasField("retry_delay"):
            told = Told.WRONG
        detail = f"{Reason.Name(refusal.reason)}: {refusal.message}"
        return Answer(self._router, pair, asked.sent, boot_s(), told, token=asked.token, detail=detail)

    def _refused(self, asked: _Asked, pair: Pair, error: grpc.aio.AioRpcError, *, is_check: bool) -> Answer:
        reason = refusals.reason(error)
        told = _CODES.get((error.code(), reason), Told.WRONG)
        if reason in (Reason.REASON_UNSPECIFIED, Reason.REASON_DEADLINE) and error.code() in _NOBODY:
            told = Told.NOTHING
        elif told is Told.UNAVAILABLE and refusals.retry_after_s(error) is None:
            told = Told.WRONG
        detail = f"{error.code().name} {Reason.Name(reason)}: {error.details()}"
        return Answer(self._router, pair, asked.sent, boot_s(), told, is_check, token=asked.token, detail=detail)
