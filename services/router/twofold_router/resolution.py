"""Resolving: whether a user may use an agent, and where the agent lives."""

import asyncio
from dataclasses import dataclass

from twofold_chassis.refusals import FailedPrecondition, Reason
from twofold_router.permissions import Basis, NotPermitted, Permissions, Verdict
from twofold_router.routes import AgentKey, AgentUnknown, Route, Routes, Source


class AgentNotPublished(FailedPrecondition):
    """The agent exists, but takes no messages."""

    reason = Reason.REASON_AGENT_NOT_PUBLISHED


class AgentGone(FailedPrecondition):
    """The agent was declared gone: it takes no messages any more."""

    reason = Reason.REASON_AGENT_GONE


@dataclass(frozen=True, slots=True)
class Question:
    """May this user use this agent, as of a revision at least as new as the token (if there is one)?"""

    agent: AgentKey
    user_id: str
    at_least: bytes = b""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Yes, and there it lives for this user. `stamp` is the revision of the permission."""

    url: str
    route: Route
    source: Source
    age_s: float
    basis: Basis
    stamp: bytes


class Resolver:
    """Answers questions out of what the registry says: the permission anew each time, the route through the cache."""

    def __init__(self, permissions: Permissions, routes: Routes) -> None:
        self._permissions = permissions
        self._routes = routes

    async def resolve(self, question: Question) -> Resolution:
        """Refuses with NotPermitted, AgentUnknown (to who may know), AgentGone, AgentNotPublished, or as the registry."""
        verdict, sourced = await asyncio.gather(
            self._permissions.check(question.agent, question.user_id, question.at_least),
            self._routes.get(question.agent, question.at_least),
            return_exceptions=True,
        )
        # The permission speaks first: before it is given, nothing of the agent may be seen, not even its absence.
        if isinstance(verdict, BaseException):
            raise verdict
        basis = _basis(question, verdict)
        if isinstance(sourced, AgentUnknown):
            raise _vanished(question, basis)
        if isinstance(sourced, BaseException):
            raise sourced
        route, agent = sourced.route, question.agent
        if route.gone:
            raise AgentGone(f"agent {agent.agent_id!r} is gone and will not come back", agent_id=agent.agent_id)
        if not route.published:
            raise AgentNotPublished(f"agent {agent.agent_id!r} takes no messages", agent_id=agent.agent_id)
        url = route.url_for(agent, question.user_id)
        return Resolution(url, route, sourced.source, self._routes.age_s(route), basis, verdict.stamp)


def _basis(question: Question, verdict: Verdict) -> Basis:
    if verdict.basis is not None:
        return verdict.basis
    if verdict.agent_unknown:
        raise AgentUnknown(question.agent)
    raise NotPermitted(question.agent, question.user_id)


def _vanished(question: Question, basis: Basis) -> AgentUnknown | NotPermitted:
    # Deleted between the two readings: said as the check would have said it a moment later.
    return AgentUnknown(question.agent) if basis is Basis.ROLE else NotPermitted(question.agent, question.user_id)
