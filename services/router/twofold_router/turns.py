"""Turns: the whole way of one message, in order.

resolve → context (and whether the turn was kept before) → the agent, streamed → the exchange kept → its usage recorded.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from twofold_chassis.refusals import Busy, Overloaded, Reason, Refusal, RequestReused
from twofold_router import prompts
from twofold_router.agents import Agents, Answer, Usage, estimated_tokens
from twofold_router.conversations import Context, Conversations, Exchange, KeptTurn, Receipt, TurnKey, Wanted
from twofold_router.copies import Source
from twofold_router.keeping import Keeping
from twofold_router.ledger import Ledger, UsageEvent
from twofold_router.metrics import Metrics
from twofold_router.resolution import Question, Resolution, Resolver

_logger = structlog.get_logger("twofold.turn")


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller asks for. `turn_is_new` if the caller cannot have sent it before: its operation id was made here."""

    question: Question
    thread_id: str | None
    operation_id: str
    turn_is_new: bool
    message: str
    instructions: str

    @property
    def turn(self) -> TurnKey | None:
        """The turn in memory; None for one that is not kept."""
        if self.thread_id is None:
            return None
        return TurnKey(self.question.agent.workspace_id, self.thread_id, self.operation_id)


@dataclass(frozen=True, slots=True)
class Started:
    """The turn may run. `context_source` and `context_completeness` are memory's numbers of them; 0 is unset."""

    operation_id: str
    context_messages: int
    context_preferences: int
    context_source: int
    context_completeness: int
    route_source: Source
    replayed: bool
    resolve_s: float
    context_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The turn is over. Without a receipt it was not kept."""

    finish_reason: str
    usage: Usage
    usage_recorded: bool
    receipt: Receipt | None
    first_token_s: float
    agent_s: float
    keep_s: float


Event = Started | Delta | Completed


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of an answered turn."""

    finish_reason: str
    usage: Usage
    receipt: Receipt | None
    recorded: bool
    keep_s: float


class Turns:
    """Takes messages all the way: at most `turns_max` at once."""

    def __init__(
        self,
        resolver: Resolver,
        conversations: Conversations,
        agents: Agents,
        ledger: Ledger,
        keeping: Keeping,
        metrics: Metrics,
        *,
        turns_max: int,
    ) -> None:
        self._resolver = resolver
        self._conversations = conversations
        self._agents = agents
        self._ledger = ledger
        self._keeping = keeping
        self._metrics = metrics
        self._turns_max = turns_max
        self._running = 0
        self._under_way: set[tuple[TurnKey, str]] = set()

    async def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """The events of a turn: Started, any number of Delta, Completed."""
        with self._counted(), self._place():
            async with aclosing(self._events(ask)) as events:
                async for event in events:
                    yield event

    async def _events(self, ask: Ask) -> AsyncGenerator[Event, None]:
        began = time.monotonic()
        resolution = await self._resolver.resolve(ask.question)
        with self._alone(ask):
            async with aclosing(self._resolved(ask, resolution, began)) as events:
                async for event in events:
                    yield event

    async def _resolved(self, ask: Ask, resolution: Resolution, began: float) -> AsyncGenerator[Event, None]:
        resolved = time.monotonic()
        context, kept = await asyncio.gather(self._context(ask, resolution), self._find(ask))
        durations = (resolved - began, time.monotonic() - resolved)
        if kept is not None:
            _require_same(ask, kept)
            yield _started(ask, resolution, context, durations, replayed=True)
            async for event in self._replay(ask, kept):
                yield event
            return
        yield _started(ask, resolution, context, durations, replayed=False)
        async with aclosing(self._ask_agent(ask, resolution, context)) as events:
            async for event in events:
                yield event

    async def _context(self, ask: Ask, resolution: Resolution) -> Context:
        settings = resolution.route.settings
        agent, user_id = ask.question.agent, ask.question.user_id
        return await self._conversations.context(
            Wanted(agent.workspace_id, ask.thread_id, user_id, settings.context_messages_max, settings.context_tokens_max)
        )

    async def _find(self, ask: Ask) -> KeptTurn | None:
        if ask.turn is None or ask.turn_is_new:
            return None
        # A first call that broke off while its answer was being kept: to look too early is to ask the agent again.
        await self._keeping.settled(ask.turn)
        return await self._conversations.find(ask.turn, ask.question.user_id)

    async def _replay(self, ask: Ask, kept: KeptTurn) -> AsyncGenerator[Event, None]:
        if kept.text:
            yield Delta(kept.text)
        # The first call may have ended between keeping and recording: the same event again counts once.
        recording = self._keeping.start(self._record(ask, kept.usage, kept.receipt.create_time or datetime.now(UTC)))
        recorded = await asyncio.shield(recording)
        yield Completed(kept.finish_reason, kept.usage, recorded, kept.receipt, 0.0, 0.0, 0.0)

    async def _ask_agent(self, ask: Ask, resolution: Resolution, context: Context) -> AsyncGenerator[Event, None]:
        question = ask.question
        prompt = prompts.prompt(
            question.agent, resolution.route, resolution.url, question.user_id, ask.instructions, context, ask.message
        )
        began_at, began = datetime.now(UTC), time.monotonic()
        keeping: asyncio.Task[Kept] | None = None
        first_token_s = agent_s = 0.0
        async with aclosing(self._agents.answer(prompt)) as pieces:
            async for piece in pieces:
                agent_s = time.monotonic() - began
                first_token_s = first_token_s or agent_s
                if isinstance(piece, str):
                    yield Delta(piece)
                else:
                    # From here on the turn is kept, whatever becomes of its caller: nothing may be awaited in between.
                    usage = piece.usage or Usage(prompts.input_tokens(prompt), _output_tokens(piece))
                    keeping = self._keeping.start(self._keep(ask, piece, usage, began_at), name=ask.turn)
        assert keeping is not None, "an agent that does not answer refuses"
        kept = await asyncio.shield(keeping)
        yield Completed(kept.finish_reason, kept.usage, kept.recorded, kept.receipt, first_token_s, agent_s, kept.keep_s)

    async def _keep(self, ask: Ask, answer: Answer, usage: Usage, began_at: datetime) -> Kept:
        if ask.turn is None:
            return Kept(answer.finish_reason, usage, None, await self._record(ask, usage, began_at), 0.0)
        began = time.monotonic()
        question = ask.question
        receipt = await self._conversations.keep(
            Exchange(ask.turn, question.user_id, question.agent.agent_id, ask.message, answer, usage)
        )
        keep_s = time.monotonic() - began
        recorded = await self._record(ask, usage, receipt.create_time or began_at)
        return Kept(answer.finish_reason, usage, receipt, recorded, keep_s)

    async def _record(self, ask: Ask, usage: Usage, event_time: datetime) -> bool:
        """Whether the operation's usage event is recorded. Its time is the stored turn's, so that a retry says the same."""
        agent = ask.question.agent
        event = UsageEvent(
            event_id=f"{ask.operation_id}/0",
            workspace_id=agent.workspace_id,
            user_id=ask.question.user_id,
            agent_id=agent.agent_id,
            thread_id=ask.thread_id,
            event_time=event_time,
            usage=usage,
        )
        try:
            await self._ledger.record(event)
        except Refusal as refusal:
            _logger.warning("usage not recorded", event_id=event.event_id, reason=Reason.Name(refusal.reason))
            # Reused: this operation was recorded by an earlier call, with what that one used. It counts once.
            return refusal.reason == Reason.REASON_EVENT_REUSED
        return True

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._running >= self._turns_max:
            raise Overloaded("too many turns at once in this process", retry_after_s=1.0)
        self._running += 1
        self._metrics.turns_running.set(self._running)
        try:
            yield
        finally:
            self._running -= 1
            self._metrics.turns_running.set(self._running)

    @contextlib.contextmanager
    def _alone(self, ask: Ask) -> Iterator[None]:
        """No other call of the same operation runs in this process meanwhile: it would ask the agent as well."""
        if ask.turn is None:
            yield
            return
        name = (ask.turn, ask.question.user_id)  # to another user this one must not show
        if name in self._under_way:
            raise Busy("this operation is still on its way", retry_after_s=1.0, operation_id=ask.operation_id)
        self._under_way.add(name)
        try:
            yield
        finally:
            self._under_way.discard(name)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        outcome = "cancelled"
        try:
            yield
            outcome = "completed"
        except Refusal as refusal:
            outcome = Reason.Name(refusal.reason).removeprefix("REASON_").lower()
            raise
        finally:
            self._metrics.turn_ended(outcome)


def _started(
    ask: Ask, resolution: Resolution, context: Context, durations: tuple[float, float], *, replayed: bool
) -> Started:
    return Started(
        operation_id=ask.operation_id,
        # An agent that is not called is given nothing.
        context_messages=0 if replayed else len(context.messages),
        context_preferences=0 if replayed else len(context.preferences),
        context_source=context.source,
        context_completeness=context.completeness,
        route_source=resolution.source,
        replayed=replayed,
        resolve_s=durations[0],
        context_s=durations[1],
    )


def _require_same(ask: Ask, kept: KeptTurn) -> None:
    if (kept.message, kept.agent_id) != (ask.message, ask.question.agent.agent_id):
        raise RequestReused("this operation_id was used for another message", operation_id=ask.operation_id)


def _output_tokens(answer: Answer) -> int:
    texts = [answer.text or "", *(call.arguments for call in answer.tool_calls)]
    return estimated_tokens(sum(len(text.encode()) for text in texts))
