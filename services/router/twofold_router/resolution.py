"""Resolving: whether a user may use an agent within the limits, and where the agent lives."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from twofold_chassis import fields
from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import FailedPrecondition, HistoryChanged, PeerUnavailable, Reason, Refusal
from twofold_chassis.revisions import Revision
from twofold_router.copies import Copies, Held, Source
from twofold_router.counting import Limits
from twofold_router.knowledge import Knowledge, Stamp
from twofold_router.limits import UNCOUNTED, Claim, Counted, LimitsSource, LimitsUnknown, Operation
from twofold_router.permissions import NotPermitted, PairKey, Permission, Verdict
from twofold_router.routes import AgentKey, AgentUnknown, Route, Target
from twofold_router.targets import Choice, Targets
from twofold_router.terms import Terms, TermsKey

_ROUNDS_MAX = 5
_STREAM_S = 0.05
_FIRST_PING_S = 1.0
_COLD_AT_ONCE = 16
_PERMITS = (Verdict.GRANT, Verdict.ROLE)


class AgentNotPublished(FailedPrecondition):
    """The agent exists, but takes no messages."""

    reason = Reason.REASON_AGENT_NOT_PUBLISHED


class AgentGone(FailedPrecondition):
    """The agent was declared gone: it takes no messages any more."""

    reason = Reason.REASON_AGENT_GONE


class Question(NamedTuple):
    """May this user use this agent, as of a revision at least as new as `least` (if there is one)?

    `claim`: what is asked of the limits.
    """

    agent: AgentKey
    user_id: str
    least: Revision | None = None
    claim: Claim = Claim()

    @property
    def pair(self) -> PairKey:
        return PairKey(self.agent.workspace_id, self.user_id, self.agent.agent_id)

    @property
    def terms_key(self) -> TermsKey:
        return TermsKey(self.agent.workspace_id, self.user_id)


class Ruling(NamedTuple):
    """What the registry says of the pair, how long that may be relied on, and in how many seconds it ends by itself."""

    verdict: Verdict
    stamp: Stamp
    source: Source
    age_s: float
    valid_s: float
    ends_s: float | None = None


class Resolution(NamedTuple):
    """Yes, there it lives for this user, and this was counted."""

    ruling: Ruling
    choice: Choice
    route: Route
    source: Source
    age_s: float
    counted: Counted = UNCOUNTED

    @property
    def target(self) -> Target:
        return self.choice.target

    @property
    def url(self) -> str:
        return self.choice.target.url


class Facts(NamedTuple):
    """What an answer rests on, and under which keys. Without a route or terms it can only be that nothing is permitted."""

    pair: PairKey
    terms_key: TermsKey
    permission: Held[Permission]
    route: Held[Route | None] | None
    terms: Held[Terms | None] | None


class Resolver:
    """Answers out of copies of what the registry says, for as long as those may be answered from; else asks the registry.

    What is counted is counted between two looks at the same facts: who may not is counted nowhere, and nobody passes on what
    was looked at before something was awaited.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        permissions: Copies[PairKey, Permission],
        routes: Copies[AgentKey, Route | None],
        terms: Copies[TermsKey, Terms | None],
        targets: Targets,
        limits: Limits,
    ) -> None:
        self._knowledge = knowledge
        self._permissions = permissions
        self._routes = routes
        self._terms = terms
        self._targets = targets
        self._limits = limits

    async def resolve(self, question: Question, *, peek: bool = False) -> Resolution:
        """Refuses with NotPermitted, AgentUnknown (to who may know), AgentGone, AgentNotPublished, AgentNotReady,
        UrlForbidden, CapReached, LimitReached, RequestReused, or as the registry. Who only peeks sends no message and counts
        nothing, and no limit refuses, also if it cannot be told how the limits stand.

        Where it cannot be known, with PeerUnavailable or LimitsUnknown: never with any of the others.
        """
        if peek:
            question = question._replace(claim=Claim(cost=question.claim.cost, peeks=True))
        facts, answer = await self._answered_from(question, self._find(question, boot_s()), None)
        if not self._asks_limits(question, facts):
            return answer
        operation = _operation(question)
        try:
            counted = await self._counted(question, operation, facts)
        except LimitsUnknown:
            if not peek:
                raise
            counted = UNCOUNTED
        try:
            return (await self._answered_from(question, facts, counted))[1]
        except Refusal:
            await self._take_back(question, operation, counted)
            raise

    async def resolve_all(self, questions: Sequence[Question]) -> Sequence[Resolution | Refusal]:
        """The same for many: what one is refused with is its answer. Raises HistoryChanged."""
        now = boot_s()
        found = [self._find(question, now) for question in questions]
        known, answers = await self._all_answered_from(questions, found, {})
        counting = {
            index: _operation(questions[index])
            for index, (facts, answer) in enumerate(zip(known, answers, strict=True))
            if isinstance(facts, Facts) and isinstance(answer, Resolution) and self._asks_limits(questions[index], facts)
        }
        if not counting:
            self._note_all(known, answers)
            return answers
        told = await asyncio.gather(
            *(self._tried_to_count(questions[index], operation, known[index]) for index, operation in counting.items())
        )
        counted = dict(zip(counting, told, strict=True))
        try:
            known, answers = await self._all_answered_from(questions, known, counted)
        except HistoryChanged:
            answers = [_cannot_tell()] * len(questions)
            await self._take_all_back(questions, counting, counted, answers)
            raise
        self._note_all(known, answers)
        return await self._take_all_back(questions, counting, counted, answers)

    async def check(self, question: Question) -> Ruling:
        """What the registry says of the pair alone; a denial is an answer here."""
        pair, least = question.pair, question.least
        self._require_history(least)
        held = self._permissions.peek(pair, boot_s())
        for _ in range(_ROUNDS_MAX):
            if held is None:
                await self._get_ready(least)
                held = await self._permissions.get(pair, least)
            now = boot_s()
            if self._permissions.may_answer(pair, held, least, now):
                self._permissions.answered(held)
                return self._ruling(held, now)
            held = None
        raise _cannot_tell()

    def _find(self, question: Question, now: float) -> Facts | None:
        """The copies in this process, if they are enough for an answer: whom nothing is permitted needs a permission only.

        Whether they may be answered from is looked at last, once.
        """
        if question.least is not None:
            self._require_history(question.least)
        agent, user_id, _, _ = question
        workspace_id, agent_id = agent
        pair = PairKey(workspace_id, user_id, agent_id)
        permission = self._permissions.peek(pair, now)
        if permission is None:
            return None
        terms_key = TermsKey(workspace_id, user_id)
        route, terms = self._routes.peek(agent, now), self._terms.peek(terms_key, now)
        if (route is None or terms is None) and self._permits(permission):
            return None
        return Facts(pair, terms_key, permission, route, terms)

    async def _read(self, question: Question) -> Facts:
        pair, terms_key, least = question.pair, question.terms_key, question.least
        await self._get_ready(least)
        permission, route, terms = await asyncio.gather(
            self._permissions.get(pair, least),
            self._routes.get(question.agent, least),
            self._terms.get(terms_key, least),
            return_exceptions=True,
        )
        # The permission speaks first: before it is given, nothing of the agent may be seen.
        if isinstance(permission, BaseException):
            raise permission
        if isinstance(route, BaseException) or isinstance(terms, BaseException):
            if self._permits(permission):
                raise route if isinstance(route, BaseException) else terms  # type: ignore[misc]  # one of them is
            return Facts(pair, terms_key, permission, None, None)
        return Facts(pair, terms_key, permission, route, terms)

    async def _answered_from(
        self, question: Question, facts: Facts | None, counted: Counted | None
    ) -> tuple[Facts, Resolution]:
        """The answer and what it rests on. From the last look on nothing is awaited: what is looked at last is answered."""
        for _ in range(_ROUNDS_MAX):
            if facts is None:
                facts = await self._read(question)
            try:
                answer = self._answer(question, facts, boot_s(), counted)
            except Refusal as refusal:
                self._note(facts, refusal)
                raise
            if answer is not None:
                if counted is not None or not self._asks_limits(question, facts):
                    self._note(facts, answer)
                return facts, answer
            facts = None
        raise _cannot_tell()

    async def _all_answered_from(
        self,
        questions: Sequence[Question],
        found: Sequence[Facts | Refusal | None],
        counted: Mapping[int, Counted | Refusal],
    ) -> tuple[list[Facts | Refusal | None], list[Resolution | Refusal]]:
        """The same for all. What is not counted because it is refused keeps its refusal."""
        waiting = asyncio.Semaphore(_COLD_AT_ONCE)  # of one batch; others want to ask as well

        async def read(question: Question) -> Facts | Refusal:
            async with waiting:
                return await self._tried(question)

        facts = list(found)
        answers: list[Resolution | Refusal | None] = []
        for _ in range(_ROUNDS_MAX):
            cold = [index for index, each in enumerate(facts) if each is None]
            if cold:
                known = await asyncio.gather(*(read(questions[index]) for index in cold))
                for index, told in zip(cold, known, strict=True):
                    facts[index] = told
            now = boot_s()  # one look for all, and nothing is awaited behind it
            answers = [
                self._answered(question, facts[index], now, counted.get(index)) for index, question in enumerate(questions)
            ]
            if None not in answers:
                break
            facts = [each if answer is not None else None for each, answer in zip(facts, answers, strict=True)]
        return facts, [_cannot_tell() if answer is None else answer for answer in answers]

    # What is counted -----------------------------------------------------------------------------------------

    def _asks_limits(self, question: Question, facts: Facts) -> bool:
        """Whether there is anything to look at: without limits only what has an id of its own is counted."""
        if question.claim.operation_id is not None:
            return True
        return facts.terms is not None and facts.terms.value is not None and bool(facts.terms.value.limits)

    async def _counted(self, question: Question, operation: Operation, facts: Facts) -> Counted:
        assert facts.terms is not None and facts.terms.value is not None, "who is answered has terms"  # noqa: PT018
        limits = facts.terms.value.limits
        if question.claim.peeks:
            return UNCOUNTED._replace(limits=await self._limits.peek(operation, limits), source=LimitsSource.COUNTED)
        return await self._limits.count(operation, limits)

    async def _tried_to_count(
        self, question: Question, operation: Operation, facts: Facts | Refusal | None
    ) -> Counted | Refusal:
        assert isinstance(facts, Facts), "who is answered has facts"
        try:
            return await self._counted(question, operation, facts)
        except Refusal as refusal:
            return refusal

    async def _take_back(self, question: Question, operation: Operation, counted: Counted) -> None:
        """It was counted, and is denied. What was answered before stays counted. Raises LimitsUnknown."""
        if not question.claim.peeks and not counted.is_duplicate:
            await self._limits.release(operation)

    async def _take_all_back(
        self,
        questions: Sequence[Question],
        counting: Mapping[int, Operation],
        counted: Mapping[int, Counted | Refusal],
        answers: Sequence[Resolution | Refusal],
    ) -> list[Resolution | Refusal]:
        """The answers, once everything is taken back that was counted and is refused."""

        async def settled(index: int, answer: Resolution | Refusal) -> Resolution | Refusal:
            taken = counted.get(index)
            if isinstance(answer, Refusal) and isinstance(taken, Counted):
                try:
                    await self._take_back(questions[index], counting[index], taken)
                except Refusal as refusal:
                    return refusal
            return answer

        return list(await asyncio.gather(*(settled(index, answer) for index, answer in enumerate(answers))))

    # What is answered ----------------------------------------------------------------------------------------

    async def _tried(self, question: Question) -> Facts | Refusal:
        try:
            return await self._read(question)
        except HistoryChanged:
            raise
        except Refusal as refusal:
            return refusal

    def _answered(
        self, question: Question, facts: Facts | Refusal | None, now: float, counted: Counted | Refusal | None
    ) -> Resolution | Refusal | None:
        if facts is None or isinstance(facts, Refusal):
            return facts
        if isinstance(counted, Refusal):
            return counted
        try:
            return self._answer(question, facts, now, counted)
        except Refusal as refusal:
            return refusal

    def _answer(self, question: Question, facts: Facts, now: float, counted: Counted | None) -> Resolution | None:
        """The answer, if it may be given now. Raises what it refuses with."""
        (pair, terms_key, permission, route, terms), least = facts, question.least
        if not self._permissions.may_answer(pair, permission, least, now):
            return None
        ruling = self._ruling(permission, now)
        if ruling.verdict not in _PERMITS:
            require_permitted(question, ruling.verdict)
        if route is None or not self._routes.may_answer(question.agent, route, least, now):
            return None
        if terms is None or not self._terms.may_answer(terms_key, terms, least, now):
            return None
        if route.value is None or terms.value is None:
            raise _vanished(question, ruling.verdict)
        return self._resolution(question, facts, ruling, route.value, terms.value, now, counted)

    def _note(self, facts: Facts, answer: Resolution | Refusal) -> None:
        """An answer that leaves rests on these: one that refuses, before anything else was looked at, on the permission."""
        self._permissions.answered(facts.permission)
        if facts.route is not None and (isinstance(answer, Resolution) or self._permits(facts.permission)):
            self._routes.answered(facts.route)
            if facts.terms is not None:
                self._terms.answered(facts.terms)

    def _note_all(self, known: Sequence[Facts | Refusal | None], answers: Sequence[Resolution | Refusal]) -> None:
        for facts, answer in zip(known, answers, strict=True):
            if isinstance(facts, Facts):
                self._note(facts, answer)

    def _require_history(self, least: Revision | None) -> None:
        if least is not None and least.epoch < self._knowledge.place.epoch:
            raise HistoryChanged("the revision token is of another history of the registry; drop it and read again")

    async def _get_ready(self, least: Revision | None) -> None:
        knowledge = self._knowledge
        await knowledge.until_known(_FIRST_PING_S)
        if not knowledge.is_known:
            raise PeerUnavailable("the registry has not been heard yet", retry_after_s=1.0, peer="registry")
        self._require_history(least)
        if least is not None and least.epoch == knowledge.place.epoch:
            await knowledge.until_passed(least, _STREAM_S)

    def _permits(self, held: Held[Permission]) -> bool:
        return self._ruling(held, boot_s()).verdict in _PERMITS

    def _ruling(self, held: Held[Permission], now: float) -> Ruling:
        permission, sent_at = held.value, held.sent_at
        verdict, valid_s, ends_s = permission.verdict, self._valid_s(sent_at, now), None
        if permission.ends_s is not None:
            database_s = self._database_s(held, now)
            verdict = permission.at(database_s)
            if verdict in _PERMITS:
                ends_s = permission.ends_s - database_s
                valid_s = min(valid_s, ends_s)
        return Ruling(verdict, held.stamp, held.source, max(0.0, now - held.read_at), valid_s, ends_s)

    def _valid_s(self, sent_at: float | None, now: float) -> float:
        """For how long a copy may be answered from, or what was read for this answer."""
        knowledge = self._knowledge
        until = knowledge.until() if sent_at is None else min(sent_at + knowledge.lease_s, knowledge.registered_until)
        return max(0.0, until - now)

    def _resolution(
        self,
        question: Question,
        facts: Facts,
        ruling: Ruling,
        route: Route,
        terms: Terms,
        now: float,
        counted: Counted | None,
    ) -> Resolution:
        agent, held, held_terms = question.agent, facts.route, facts.terms
        assert held is not None and held_terms is not None, "these are their values"  # noqa: PT018
        if route.gone:
            raise _gone(agent)
        if not route.published:
            raise AgentNotPublished(f"agent {agent.agent_id!r} takes no messages", agent_id=agent.agent_id)
        if terms.capped_month:
            terms.require_uncapped(agent.workspace_id, self._database_s(held_terms, now))
        # Who has still to be counted sends nothing yet.
        peeks = question.claim.peeks or (counted is None and self._asks_limits(question, facts))
        choice = self._targets.choose(agent, route, question.user_id, terms.home, now, peek=peeks)
        if facts.permission.sent_at is not None or held.sent_at is not None or held_terms.sent_at is not None:
            # Not all are copies, of which each is valid for as long as the others.
            valid_s = min(self._valid_s(held.sent_at, now), self._valid_s(held_terms.sent_at, now))
            if valid_s < ruling.valid_s:
                ruling = ruling._replace(valid_s=valid_s)
        return Resolution(ruling, choice, route, held.source, max(0.0, now - held.read_at), counted or UNCOUNTED)

    def _database_s(self, held: Held[Permission] | Held[Terms | None], now: float) -> float:
        """What the database's clock says at most. Of what was read for this answer it was read after it was asked for."""
        return self._knowledge.database_s(now) if held.sent_at is None else held.read_s + (now - held.sent_at)


def _operation(question: Question) -> Operation:
    claim = question.claim
    return Operation(question.pair, claim.operation_id or fields.new_id(), claim.cost)


def permits(ruling: Ruling) -> bool:
    """Whether the user may use the agent."""
    return ruling.verdict in _PERMITS


def require_permitted(question: Question, verdict: Verdict) -> None:
    """Refuses as a message would be refused that has no permission."""
    agent = question.agent
    if verdict is Verdict.AGENT_UNKNOWN:
        raise AgentUnknown(agent)
    if verdict is Verdict.AGENT_GONE:
        raise _gone(agent)
    if verdict is Verdict.DENIED:
        raise NotPermitted(agent, question.user_id)


def _gone(agent: AgentKey) -> AgentGone:
    return AgentGone(f"agent {agent.agent_id!r} is gone and will not come back", agent_id=agent.agent_id)


def _vanished(question: Question, verdict: Verdict) -> AgentUnknown | NotPermitted:
    # Deleted between the two readings: said as the check would have said it a moment later.
    if verdict is Verdict.ROLE:
        return AgentUnknown(question.agent)
    return NotPermitted(question.agent, question.user_id)


def _cannot_tell() -> PeerUnavailable:
    return PeerUnavailable("what the registry says cannot be relied on just now", retry_after_s=0.2, peer="registry")
