"""Resolving: whether a user may use an agent, and where the agent lives."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import FailedPrecondition, HistoryChanged, PeerUnavailable, Reason, Refusal
from twofold_chassis.revisions import Revision
from twofold_router.copies import Copies, Held, Source
from twofold_router.knowledge import Knowledge, Stamp
from twofold_router.permissions import NotPermitted, PairKey, Permission, Verdict
from twofold_router.routes import AgentKey, AgentUnknown, Route, Target
from twofold_router.targets import Choice, Targets

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
    """May this user use this agent, as of a revision at least as new as `least` (if there is one)?"""

    agent: AgentKey
    user_id: str
    least: Revision | None = None

    @property
    def pair(self) -> PairKey:
        return PairKey(self.agent.workspace_id, self.user_id, self.agent.agent_id)


class Ruling(NamedTuple):
    """What the registry says of the pair, for how long that may be relied on, and when it ends by itself, in seconds from now."""

    verdict: Verdict
    stamp: Stamp
    source: Source
    age_s: float
    valid_s: float
    ends_s: float | None = None


class Resolution(NamedTuple):
    """Yes, and there it lives for this user."""

    ruling: Ruling
    choice: Choice
    route: Route
    source: Source
    age_s: float

    @property
    def target(self) -> Target:
        return self.choice.target

    @property
    def url(self) -> str:
        return self.choice.target.url


class Facts(NamedTuple):
    """What an answer rests on. Without a route it can only be that nothing is permitted."""

    permission: Held[Permission]
    route: Held[Route | None] | None


class Resolver:
    """Answers out of copies of what the registry says, for as long as those may be answered from; else asks the registry."""

    def __init__(
        self,
        knowledge: Knowledge,
        permissions: Copies[PairKey, Permission],
        routes: Copies[AgentKey, Route | None],
        targets: Targets,
    ) -> None:
        self._knowledge = knowledge
        self._permissions = permissions
        self._routes = routes
        self._targets = targets

    async def resolve(self, question: Question, *, peek: bool = False) -> Resolution:
        """Refuses with NotPermitted, AgentUnknown (to who may know), AgentGone, AgentNotPublished, AgentNotReady,
        UrlForbidden, or as the registry. Who only peeks sends no message.

        Where it cannot be known, with PeerUnavailable: never with any of the others.
        """
        facts = self._find(question)
        for _ in range(_ROUNDS_MAX):
            if facts is None:
                facts = await self._read(question)
            # From here to the answer nothing is awaited: what is looked at last is what is answered.
            answer = self._answer(question, facts, boot_s(), peek=peek)
            if answer is not None:
                return answer
            facts = None
        raise _cannot_tell()

    async def resolve_all(self, questions: Sequence[Question]) -> Sequence[Resolution | Refusal]:
        """The same for many: what one is refused with is its answer. Raises HistoryChanged."""
        waiting = asyncio.Semaphore(_COLD_AT_ONCE)  # of one batch; others want to ask as well

        async def read(question: Question) -> Facts | Refusal:
            async with waiting:
                return await self._tried(question)

        facts: list[Facts | Refusal | None] = [self._find(question) for question in questions]
        answers: list[Resolution | Refusal | None] = []
        for _ in range(_ROUNDS_MAX):
            cold = [index for index, found in enumerate(facts) if found is None]
            if cold:
                known = await asyncio.gather(*(read(questions[index]) for index in cold))
                for index, found in zip(cold, known, strict=True):
                    facts[index] = found
            now = boot_s()  # one look for all, and nothing is awaited behind it
            answers = [self._answered(*one, now) for one in zip(questions, facts, strict=True)]
            if None not in answers:
                break
            facts = [found if answer is not None else None for found, answer in zip(facts, answers, strict=True)]
        return [_cannot_tell() if answer is None else answer for answer in answers]

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

    def _find(self, question: Question) -> Facts | None:
        """The copies in this process, if they are enough for an answer: whom nothing is permitted needs no route.

        Whether they may be answered from is looked at last, once.
        """
        self._require_history(question.least)
        now = boot_s()
        permission = self._permissions.peek(question.pair, now)
        if permission is None:
            return None
        route = self._routes.peek(question.agent, now)
        return Facts(permission, route) if route is not None or not self._permits(permission) else None

    async def _read(self, question: Question) -> Facts:
        await self._get_ready(question.least)
        permission, route = await asyncio.gather(
            self._permissions.get(question.pair, question.least),
            self._routes.get(question.agent, question.least),
            return_exceptions=True,
        )
        # The permission speaks first: before it is given, nothing of the agent may be seen.
        if isinstance(permission, BaseException):
            raise permission
        if isinstance(route, BaseException):
            if self._permits(permission):
                raise route
            return Facts(permission, None)
        return Facts(permission, route)

    async def _tried(self, question: Question) -> Facts | Refusal:
        try:
            return await self._read(question)
        except HistoryChanged:
            raise
        except Refusal as refusal:
            return refusal

    def _answered(self, question: Question, facts: Facts | Refusal | None, now: float) -> Resolution | Refusal | None:
        if facts is None or isinstance(facts, Refusal):
            return facts
        try:
            return self._answer(question, facts, now)
        except Refusal as refusal:
            return refusal

    def _answer(self, question: Question, facts: Facts, now: float, *, peek: bool = False) -> Resolution | None:
        """The answer, if it may be given now. Raises what it refuses with."""
        (permission, route), agent, least = facts, question.agent, question.least
        if not self._permissions.may_answer(question.pair, permission, least, now):
            return None
        ruling = self._ruling(permission, now)
        require_permitted(question, ruling.verdict)
        if route is None or not self._routes.may_answer(agent, route, least, now):
            return None
        if route.value is None:
            raise _vanished(question, ruling.verdict)
        self._permissions.answered(permission)
        self._routes.answered(route)
        return self._resolution(question, ruling, route, route.value, now, peek=peek)

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
        # Of what was read for this answer the database's clock was read after it was asked for.
        database_s = self._knowledge.database_s(now) if sent_at is None else permission.read_s + (now - sent_at)
        verdict, valid_s = permission.at(database_s), self._valid_s(held, now)
        if permission.ends_s is not None and verdict in _PERMITS:
            valid_s = min(valid_s, permission.ends_s - database_s)
        return Ruling(verdict, held.stamp, held.source, max(0.0, now - held.read_at), valid_s)

    def _valid_s(self, held: Held[Permission] | Held[Route | None], now: float) -> float:
        knowledge = self._knowledge
        if held.sent_at is None:
            return max(0.0, knowledge.until() - now)
        return max(0.0, min(held.sent_at + knowledge.lease_s, knowledge.registered_until) - now)

    def _resolution(
        self, question: Question, ruling: Ruling, held: Held[Route | None], route: Route, now: float, *, peek: bool
    ) -> Resolution:
        agent = question.agent
        if route.gone:
            raise _gone(agent)
        if not route.published:
            raise AgentNotPublished(f"agent {agent.agent_id!r} takes no messages", agent_id=agent.agent_id)
        choice = self._targets.choose(agent, route, question.user_id, None, now, peek=peek)
        valid_s = self._valid_s(held, now)
        if valid_s < ruling.valid_s:
            ruling = ruling._replace(valid_s=valid_s)
        return Resolution(ruling, choice, route, held.source, max(0.0, now - held.read_at))


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
