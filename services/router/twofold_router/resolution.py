"""Resolving: whether a user may use an agent, and where the agent lives."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import FailedPrecondition, HistoryChanged, PeerUnavailable, Reason, Refusal
from twofold_chassis.revisions import Revision
from twofold_router.copies import Copies, Held, Source
from twofold_router.knowledge import Knowledge, Stamp
from twofold_router.permissions import NotPermitted, PairKey, Permission, Verdict
from twofold_router.routes import AgentKey, AgentUnknown, Route, Target

_ROUNDS_MAX = 5
_STREAM_S = 0.05
_FIRST_PING_S = 1.0
_COLD_AT_ONCE = 16


class AgentNotPublished(FailedPrecondition):
    """The agent exists, but takes no messages."""

    reason = Reason.REASON_AGENT_NOT_PUBLISHED


class AgentGone(FailedPrecondition):
    """The agent was declared gone: it takes no messages any more."""

    reason = Reason.REASON_AGENT_GONE


@dataclass(frozen=True, slots=True)
class Question:
    """May this user use this agent, as of a revision at least as new as `least` (if there is one)?"""

    agent: AgentKey
    user_id: str
    least: Revision | None = None

    @property
    def pair(self) -> PairKey:
        return PairKey(self.agent.workspace_id, self.user_id, self.agent.agent_id)


class Ruling(NamedTuple):
    """What the registry says of the pair, and for how long that may be relied on, in seconds."""

    verdict: Verdict
    stamp: Stamp
    source: Source
    age_s: float
    valid_s: float


@dataclass(frozen=True, slots=True)
class Resolution:
    """Yes, and there it lives for this user."""

    ruling: Ruling
    target: Target
    route: Route
    source: Source
    age_s: float

    @property
    def url(self) -> str:
        return self.target.url


class Resolver:
    """Answers out of copies of what the registry says, for as long as those may be answered from; else asks the registry."""

    def __init__(
        self, knowledge: Knowledge, permissions: Copies[PairKey, Permission], routes: Copies[AgentKey, Route]
    ) -> None:
        self._knowledge = knowledge
        self._permissions = permissions
        self._routes = routes

    async def resolve(self, question: Question) -> Resolution:
        """Refuses with NotPermitted, AgentUnknown (to who may know), AgentGone, AgentNotPublished, or as the registry.

        Where it cannot be known, with PeerUnavailable: never with any of the others.
        """
        pair, agent, least = question.pair, question.agent, question.least
        now = boot_s()
        permission: Held[Permission] | None = self._permissions.find(pair, least, now)
        route: Held[Route] | AgentUnknown | None = self._routes.find(agent, least, now)
        for _ in range(_ROUNDS_MAX):
            if permission is None or route is None:
                await self._get_ready(least)
                permission, route = await self._read(question)
            now = boot_s()
            # From here to the answer nothing is awaited: what is looked at last is what is answered.
            if self._permissions.may_answer(pair, permission, least, now):
                ruling = self._ruling(permission, now)
                _require_permitted(question, ruling.verdict)
                if isinstance(route, AgentUnknown):
                    raise _vanished(question, ruling.verdict)
                if self._routes.may_answer(agent, route, least, now):
                    return _resolution(question, ruling, route, now)
            permission = route = None
        raise _cannot_tell()

    async def resolve_all(self, questions: Sequence[Question]) -> Sequence[Resolution | Refusal]:
        """The same for many: what one is refused with is its answer. Raises HistoryChanged."""
        waiting = asyncio.Semaphore(_COLD_AT_ONCE)  # of one batch; others want to ask as well

        async def warm(question: Question) -> None:
            async with waiting:
                await self._tried(question)

        cold = [question for question in questions if not self._is_warm(question)]
        if cold:
            await asyncio.gather(*map(warm, cold))
        return [await self._tried(question) for question in questions]

    def _is_warm(self, question: Question) -> bool:
        now = boot_s()
        return (
            self._permissions.find(question.pair, question.least, now) is not None
            and self._routes.find(question.agent, question.least, now) is not None
        )

    async def _tried(self, question: Question) -> Resolution | Refusal:
        try:
            return await self.resolve(question)
        except HistoryChanged:
            raise
        except Refusal as refusal:
            return refusal

    async def check(self, question: Question) -> Ruling:
        """What the registry says of the pair alone; a denial is an answer here."""
        pair, least = question.pair, question.least
        held = self._permissions.find(pair, least, boot_s())
        for _ in range(_ROUNDS_MAX):
            if held is None:
                await self._get_ready(least)
                held = await self._permissions.get(pair, least)
            now = boot_s()
            if self._permissions.may_answer(pair, held, least, now):
                return self._ruling(held, now)
            held = None
        raise _cannot_tell()

    async def _get_ready(self, least: Revision | None) -> None:
        knowledge = self._knowledge
        await knowledge.until_known(_FIRST_PING_S)
        if least is None:
            return
        if least.epoch < knowledge.place.epoch:
            raise HistoryChanged("the revision token is of another history of the registry; drop it and read again")
        if least.epoch == knowledge.place.epoch and least.number > knowledge.place.revision:
            await knowledge.until_reached(least.number, _STREAM_S)

    async def _read(self, question: Question) -> "tuple[Held[Permission], Held[Route] | AgentUnknown]":
        permission, route = await asyncio.gather(
            self._permissions.get(question.pair, question.least),
            self._routes.get(question.agent, question.least),
            return_exceptions=True,
        )
        # The permission speaks first: before it is given, nothing of the agent may be seen, not even its absence.
        if isinstance(permission, BaseException):
            raise permission
        if isinstance(route, BaseException) and not isinstance(route, AgentUnknown):
            if self._ruling(permission, boot_s()).verdict in (Verdict.GRANT, Verdict.ROLE):
                raise route
            return permission, AgentUnknown(question.agent)
        return permission, route

    def _ruling(self, held: Held[Permission], now: float) -> Ruling:
        knowledge, permission = self._knowledge, held.value
        if held.sent_at is None:
            database_s, until = knowledge.database_s(now), knowledge.until()
        else:  # read for this answer: the database's clock was read after it was asked for
            database_s = permission.read_s + (now - held.sent_at)
            until = min(held.sent_at + knowledge.lease_s, knowledge.registered_until)
        verdict = permission.at(database_s)
        return Ruling(verdict, held.stamp, held.source, max(0.0, now - held.read_at), max(0.0, until - now))


def _require_permitted(question: Question, verdict: Verdict) -> None:
    agent = question.agent
    if verdict is Verdict.AGENT_UNKNOWN:
        raise AgentUnknown(agent)
    if verdict is Verdict.AGENT_GONE:
        raise _gone(agent)
    if verdict is Verdict.DENIED:
        raise NotPermitted(agent, question.user_id)


def _resolution(question: Question, ruling: Ruling, held: Held[Route], now: float) -> Resolution:
    route, agent = held.value, question.agent
    if route.gone:
        raise _gone(agent)
    if not route.published:
        raise AgentNotPublished(f"agent {agent.agent_id!r} takes no messages", agent_id=agent.agent_id)
    target = route.target_for(agent, question.user_id)
    return Resolution(ruling, target, route, held.source, max(0.0, now - held.read_at))


def _gone(agent: AgentKey) -> AgentGone:
    return AgentGone(f"agent {agent.agent_id!r} is gone and will not come back", agent_id=agent.agent_id)


def _vanished(question: Question, verdict: Verdict) -> AgentUnknown | NotPermitted:
    # Deleted between the two readings: said as the check would have said it a moment later.
    if verdict is Verdict.ROLE:
        return AgentUnknown(question.agent)
    return NotPermitted(question.agent, question.user_id)


def _cannot_tell() -> PeerUnavailable:
    return PeerUnavailable("what the registry says cannot be relied on just now", retry_after_s=0.2, peer="registry")
