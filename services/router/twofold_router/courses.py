"""Courses: a turn from the question to its end, in order.

resolve (counts) → the turn opened in memory: the words are safe → context → the agent, streamed → the turn closed with its
answer and what it used → usage recorded → limits settled → told to who listens to the agent. Whatever goes wrong in between,
the turn is closed as far as it came.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from twofold_chassis import fields
from twofold_chassis.clocks import boot_s
from twofold_chassis.prices import FREE, Price
from twofold_chassis.refusals import (
    Busy,
    InvalidField,
    PeerUnavailable,
    Reason,
    Refusal,
    RequestReused,
    ResourceExhausted,
    Unavailable,
)
from twofold_router import prompts
from twofold_router.accounts import Accounts, debt
from twofold_router.agents import (
    AgentFailed,
    Agents,
    AgentTimeout,
    AgentUnreachable,
    Answer,
    Prompt,
    Usage,
    estimated_tokens,
)
from twofold_router.asks import Ask
from twofold_router.conversations import (
    Context,
    Conversations,
    Debt,
    Exchange,
    Hold,
    KeptTurn,
    Opening,
    Receipt,
    TurnInterrupted,
    TurnKey,
    Wanted,
)
from twofold_router.limits import UNCOUNTED, Counted, LimitsSource, LimitsUnknown
from twofold_router.outcomes import Outcome
from twofold_router.reporting import Report
from twofold_router.resolution import Question, Resolution, Resolver
from twofold_router.routes import AgentKey
from twofold_router.running import LeftAlone, Run
from twofold_router.targets import AgentNotReady, UrlForbidden
from twofold_router.turn_events import Calls, Completed, Started, Waiting

_ROUNDS_MAX = 5
_PAUSES_S = (0.1, 1.0)
_COUNTERS_PAUSES_S = (0.1, 0.4, 1.0)
_BEATS_IN_A_LEASE = 3
_INTERRUPTED = "interrupted"

Hear = Callable[[AgentKey, Report], None]

_logger = structlog.get_logger("twofold.turn")


@dataclass(slots=True)
class Course:
    """How far a turn has come. `sent`: something may have reached the agent."""

    run: Run
    ask: Ask
    holder: str
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    resolution: Resolution | None = None
    counted: Counted = UNCOUNTED
    valid_until: float = 0.0
    hold: Hold | None = None
    may_be_open: bool = False
    unheld: bool = False
    prompt: Prompt | None = None
    sent: bool = False
    reported: Usage | None = None
    attempts: int = 0
    waits_from: float | None = None
    resolve_s: float = 0.0
    first_token_s: float = 0.0
    agent_s: float = 0.0

    @property
    def turn(self) -> TurnKey:
        """The turn in memory, of one that has one."""
        assert self.ask.turn is not None
        return self.ask.turn

    @property
    def event_time(self) -> datetime:
        """When it was counted first; where nothing counts, when it began."""
        at_s = self.counted.at_s
        return self.began_at if at_s is None else datetime.fromtimestamp(at_s, UTC)

    @property
    def price(self) -> Price:
        """What the agent costs, as far as it is known."""
        return FREE if self.resolution is None else self.resolution.route.price

    def consumed(self) -> Usage | None:
        """What the agent said that it consumed, else an estimate from its first token on."""
        if self.reported is not None or self.prompt is None or not self.first_token_s:
            return self.reported
        return Usage(prompts.input_tokens(self.prompt), estimated_tokens(self.run.text_bytes))


class Courses:
    """Takes turns all the way. Memory holds each for `lease_s` without a sign of life; agents are dialled `cold_start_s`."""

    def __init__(
        self,
        resolver: Resolver,
        conversations: Conversations,
        agents: Agents,
        accounts: Accounts,
        hear: Hear,
        ended: Callable[[str], None],
        *,
        router: str,
        lease_s: float,
        cold_start_s: float,
    ) -> None:
        """`hear` takes in what became of messages to targets; `ended` is called with how each turn ended."""
        self._resolver = resolver
        self._conversations = conversations
        self._agents = agents
        self._accounts = accounts
        self._hear = hear
        self._ended = ended
        self._router = router
        self._lease_s = lease_s
        self._cold_start_s = cold_start_s

    async def through(self, run: Run) -> None:
        """Takes the turn to its end; whoever listens to the run is told."""
        course = Course(run, run.ask, f"{self._router}/{fields.new_id()}")
        try:
            answer = await run.stoppable(self._until_answered(course))
            if answer is not None:
                await self._answered(course, answer)
            self._ended("completed")
        except Refusal as refusal:
            await self._failed(course, refusal, course.consumed())
        except Exception as error:
            error_id = fields.new_id()
            _logger.error("defect", error_id=error_id, operation_id=run.ask.operation_id, exc_info=error)
            defect = Refusal(f"an error of ours; it is logged under {error_id}", error_id=error_id)
            await self._failed(course, defect, course.consumed())

    # Until the agent has answered ---------------------------------------------------------------------------------

    async def _until_answered(self, course: Course) -> Answer | None:
        """The answer; None if it was given before, and has been told again."""
        ask, began = course.ask, time.monotonic()
        await self._resolve(course)
        course.resolve_s = time.monotonic() - began
        if ask.thread_id is None:
            return await self._ask_agent(course, await self._context(course))
        if ask.results:
            await self._require_called(course)
        kept = await self._open(course)
        if kept is not None:
            await self._replay(course, kept)
            return None
        async with self._held(course):
            context = await self._context(course)
            if ask.results:
                prompts.require_called(ask, context)
            return await self._ask_agent(course, context)

    async def _resolve(self, course: Course) -> Resolution:
        """Permission and route as they are now; waits for an agent that is being started."""
        rounds = 0
        while rounds < _ROUNDS_MAX:
            asked_at = boot_s()
            try:
                resolution = await self._counted(course.ask.question)
            except AgentNotReady as refusal:
                await self._wait(course, refusal)  # which has an end of its own
                continue
            rounds += 1
            # By its own send time, as any caller: it holds however long the answer has been on its way.
            course.valid_until = asked_at + resolution.ruling.valid_s
            if course.resolution is None:
                course.counted = resolution.counted
            course.resolution = resolution
            if boot_s() < course.valid_until:
                return resolution
        raise PeerUnavailable("what the registry says cannot be relied on just now", retry_after_s=0.2, peer="registry")

    async def _counted(self, question: Question) -> Resolution:
        """Where the limits cannot be told, they mostly can in a moment: counters are set up anew, or Redis fails over."""
        for pause_s in (*_COUNTERS_PAUSES_S, None):
            try:
                return await self._resolver.resolve(question)
            except LimitsUnknown:
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    async def _wait(self, course: Course, refusal: Refusal) -> None:
        """A pause, longer each time; raises the refusal once the agent has been waited for long enough."""
        now = time.monotonic()
        if course.waits_from is None:
            course.waits_from = now
        course.attempts += 1
        waited_s, (least_s, most_s) = now - course.waits_from, _PAUSES_S
        pause_s = min(most_s, least_s * 2.0 ** min(course.attempts - 1, 30))
        if waited_s + pause_s > self._cold_start_s:
            raise refusal
        course.run.tell(Waiting(course.attempts, waited_s, self._cold_start_s))
        await asyncio.sleep(pause_s)

    async def _context(self, course: Course) -> Context:
        began = time.monotonic()
        context = await self._conversations.context(_wanted(course))
        course.run.tell(self._started(course, context, time.monotonic() - began))
        return context

    def _started(self, course: Course, context: Context, context_s: float) -> Started:
        assert course.resolution is not None
        return Started(
            operation_id=course.ask.operation_id,
            router=self._router,
            context_messages=len(context.messages),
            context_preferences=len(context.preferences),
            context_source=context.source,
            context_completeness=context.completeness,
            route_source=course.resolution.source,
            unheld=course.unheld,
            resolve_s=course.resolve_s,
            context_s=context_s,
        )

    # The turn in memory -------------------------------------------------------------------------------------------

    async def _open(self, course: Course) -> KeptTurn | None:
        """Opens the turn; or returns it as it was kept before. Where memory cannot, a new one goes on without."""
        ask = course.ask
        opening = Opening(
            turn=course.turn,
            user_id=ask.question.user_id,
            words=ask.words,
            holder=course.holder,
            lease_s=self._lease_s,
            policy=ask.policy,
            queue_wait_s=ask.queue_wait_s,
        )
        course.may_be_open = True  # until memory says otherwise: it may be at work, whoever stops waiting
        try:
            opened = await self._conversations.begin(opening)
        except Unavailable:
            if not _surely_new(course):
                raise
            course.unheld = True
            return None
        except Refusal:
            course.may_be_open = False
            raise
        course.may_be_open = False
        if opened.hold is None:
            return await self._kept(course)
        if opened.holder != course.holder:
            raise running_elsewhere(ask.operation_id, opened.holder)
        course.hold = opened.hold
        return None

    async def _kept(self, course: Course) -> KeptTurn:
        kept = await self._conversations.find(course.turn, course.ask.question.user_id)
        if kept is None:  # it was there a moment ago: deleted meanwhile, or not to be read yet
            raise Busy("this operation has just ended", retry_after_s=1.0, operation_id=course.ask.operation_id)
        return kept

    async def _require_called(self, course: Course) -> None:
        """Results that nobody asked for are refused before they are kept."""
        try:
            prompts.require_called(course.ask, await self._conversations.context(_wanted(course)))
        except InvalidField:
            # A repeat: the conversation has gone on since.
            if await self._conversations.find(course.turn, course.ask.question.user_id) is None:
                raise

    @contextlib.asynccontextmanager
    async def _held(self, course: Course) -> AsyncIterator[None]:
        """As long as the block runs memory is told that the turn is alive, and how far its answer is."""
        if course.hold is None:
            yield
            return
        beating = asyncio.create_task(self._beat(course, course.hold))
        try:
            yield
        finally:
            beating.cancel()

    async def _beat(self, course: Course, hold: Hold) -> None:
        run, told = course.run, 0
        while True:
            await asyncio.sleep(self._lease_s / _BEATS_IN_A_LEASE)
            said = run.text_bytes
            try:
                await self._conversations.heartbeat(
                    hold, course.ask.question.agent.agent_id, run.text if said > told else ""
                )
            except (Unavailable, ResourceExhausted):  # it may be heard next time
                continue
            except Refusal as refusal:  # somebody else has it now, or the conversation is gone
                run.stop(refusal)
                return
            told = said

    async def _replay(self, course: Course, kept: KeptTurn) -> None:
        ask, run = course.ask, course.run
        if kept.words != ask.words or kept.agent_id not in (None, ask.question.agent.agent_id):
            raise RequestReused("this operation_id was used for something else", operation_id=ask.operation_id)
        run.tell(Started(ask.operation_id, self._router, replayed=True, resolve_s=course.resolve_s))
        run.say(kept.text)
        if kept.interrupted:
            raise interrupted(ask.operation_id, kept)
        if kept.calls:
            run.tell(Calls(kept.calls))
        usage = kept.usage or Usage(0, 0)
        # The first call may have ended between keeping and recording: the same event again counts once.
        recorded = await self._accounts.record(ask, debt(ask, usage, course.event_time), kept=True)
        run.tell(Completed(kept.finish_reason, usage, recorded, kept.receipt))

    # The agent ----------------------------------------------------------------------------------------------------

    async def _ask_agent(self, course: Course, context: Context) -> Answer:
        while True:
            if boot_s() >= course.valid_until:
                await self._resolve(course)
            resolution = course.resolution
            assert resolution is not None
            course.prompt = prompts.prompt(course.ask, resolution.route, resolution.target.url, context)
            try:
                return await self._hear_agent(course, resolution, course.prompt)
            except UrlForbidden:
                course.sent = False
                raise
            except AgentUnreachable as refusal:
                course.sent = False
                self._report(course, resolution, Outcome.DIAL_FAILED)
                await self._wait(course, refusal)
                await self._resolve_or(course, refusal)

    async def _resolve_or(self, course: Course, unreachable: AgentUnreachable) -> None:
        """Asks anew where to: another target may take the message. One that is not ready is one that was not reached."""
        try:
            await self._resolve(course)
        except AgentNotReady:
            raise unreachable from None

    async def _hear_agent(self, course: Course, resolution: Resolution, prompt: Prompt) -> Answer:
        began, run = time.monotonic(), course.run
        course.sent = True
        try:
            async with aclosing(self._agents.answer(prompt)) as pieces:
                async for piece in pieces:
                    course.agent_s = time.monotonic() - began
                    if isinstance(piece, Usage):
                        course.reported = piece
                        continue
                    if not course.first_token_s:
                        course.first_token_s = course.agent_s
                        self._report(course, resolution, Outcome.FIRST_BYTE)
                    if isinstance(piece, Answer):
                        return piece
                    run.say(piece)
        except (AgentFailed, AgentTimeout):
            self._report(course, resolution, Outcome.ANSWER_FAILED)
            raise
        raise AssertionError("an agent that does not answer refuses")

    def _report(self, course: Course, resolution: Resolution, outcome: Outcome) -> None:
        report = Report(resolution.route.generation, resolution.target.name, outcome, course.first_token_s)
        self._hear(course.ask.question.agent, report)

    # Afterwards ---------------------------------------------------------------------------------------------------

    async def _answered(self, course: Course, answer: Answer) -> None:
        ask, run = course.ask, course.run
        assert course.prompt is not None
        usage = answer.usage or Usage(prompts.input_tokens(course.prompt), _output_tokens(answer))
        owed, began = debt(ask, usage, course.event_time), time.monotonic()
        try:
            receipt, in_memory = await self._keep(course, answer, owed)
        except Refusal as refusal:
            course.reported = usage
            raise refusal
        keep_s = time.monotonic() - began
        recorded = await self._accounts.record(ask, owed, kept=in_memory)
        if answer.tool_calls:
            run.tell(Calls(answer.tool_calls))
        run.tell(Completed(answer.finish_reason, usage, recorded, receipt, course.first_token_s, course.agent_s, keep_s))
        await self._accounts.settle(ask, course.counted, usage, course.price)
        await self._accounts.tell(ask, receipt, usage)

    async def _keep(self, course: Course, answer: Answer, owed: Debt) -> tuple[Receipt | None, bool]:
        """Where the turn stands, and whether memory keeps with it what is owed."""
        if course.hold is not None:
            try:
                return await self._conversations.commit(course.hold, answer, owed), True
            except Unavailable as refusal:
                if refusal.metadata.get("outcome") != "NOT_STORED":
                    raise
            # Nothing of it is stored: Postgres went away since it was opened. The journal takes the whole turn instead.
        elif not course.unheld:
            return None, False
        exchange = self._exchange(course, answer, owed.usage)
        return await self._conversations.keep(exchange), False

    def _exchange(self, course: Course, answer: Answer | None, usage: Usage | None, cause: str = "") -> Exchange:
        question = course.ask.question
        return Exchange(course.turn, question.user_id, question.agent.agent_id, course.ask.words, answer, usage, cause)

    async def _failed(self, course: Course, refusal: Refusal, consumed: Usage | None) -> None:
        ask, run = course.ask, course.run
        cause = Reason.Name(refusal.reason).removeprefix("REASON_").lower()
        owed = None if consumed is None else debt(ask, consumed, course.event_time)
        receipt, outcome = await self._close(course, refusal, cause, owed)
        if owed is not None:
            await self._accounts.record(ask, owed, kept=receipt is not None and course.hold is not None)
        run.refuse(_told(refusal, outcome) if course.resolution is not None else refusal)
        self._ended(cause)
        if course.sent:
            await self._accounts.settle(ask, course.counted, consumed, course.price)
            await self._accounts.tell(ask, receipt, consumed, cause)
        elif course.hold is not None or (not course.counted.is_duplicate and not isinstance(refusal, Busy)):
            await self._accounts.release(ask, course.counted)

    async def _close(self, course: Course, refusal: Refusal, cause: str, owed: Debt | None) -> tuple[Receipt | None, str]:
        """Where the turn stands now, if it does, and a word for what became of it."""
        goes_on = not course.sent and (refusal.reason != Reason.REASON_TURN_CANCELLED or isinstance(refusal, LeftAlone))
        try:
            if course.hold is not None and goes_on:
                await self._conversations.let_go(course.hold)
                return None, "OPEN"
            if course.hold is not None:
                partial, agent_id = course.run.text, course.ask.question.agent.agent_id
                return await self._conversations.abort(course.hold, partial, cause, agent_id, owed), "INTERRUPTED"
            if course.unheld and course.sent:
                text, used = course.run.text, None if owed is None else owed.usage
                answer = Answer(text, (), _INTERRUPTED, None) if text else None
                return await self._conversations.keep(self._exchange(course, answer, used, cause)), "INTERRUPTED"
        except Refusal as problem:
            _logger.warning("turn not closed", operation_id=course.ask.operation_id, reason=Reason.Name(problem.reason))
            if problem.reason == Reason.REASON_TURN_SUPERSEDED:
                return None, "INTERRUPTED"
            return None, "OPEN" if goes_on else "UNKNOWN"
        return None, "UNKNOWN" if course.may_be_open else "NOT_STORED"


def interrupted(operation_id: str, kept: KeptTurn) -> TurnInterrupted:
    """The refusal of an operation that has ended without an answer."""
    refusal = TurnInterrupted(
        "this operation has ended before, without an answer", operation_id=operation_id, outcome="INTERRUPTED"
    )
    if kept.cause:
        refusal.metadata["cause"] = kept.cause
    return refusal


def running_elsewhere(operation_id: str, holder: str) -> Busy:
    """The refusal of an operation that another router is at work on."""
    router = holder.rpartition("/")[0] or holder
    return Busy("this operation runs in another router", retry_after_s=1.0, operation_id=operation_id, router=router)


def _wanted(course: Course) -> Wanted:
    ask, resolution = course.ask, course.resolution
    assert resolution is not None
    return Wanted(
        ask.question.agent.workspace_id,
        ask.thread_id,
        ask.question.user_id,
        resolution.route.settings.context_messages_max,
        resolution.route.settings.context_tokens_max,
        open_calls=bool(ask.results),
    )


def _surely_new(course: Course) -> bool:
    """Whether no earlier call can have had the agent answer under this operation id."""
    counted = course.counted
    return course.ask.turn_is_new or (counted.source is LimitsSource.COUNTED and not counted.is_duplicate)


def _told(refusal: Refusal, outcome: str) -> Refusal:
    told = refusal.again()
    told.metadata = {"outcome": outcome, **refusal.metadata}
    return told


def _output_tokens(answer: Answer) -> int:
    texts = [answer.text or "", *(call.arguments for call in answer.tool_calls)]
    return estimated_tokens(sum(len(text.encode()) for text in texts))
