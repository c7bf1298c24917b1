"""Explaining, to people: what a resolve would say now, out of which copies, and why those may be answered from or may not.

It looks before it asks, and counts nothing. Whatever is away, it says so: it never fails for it.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from twofold_chassis import call
from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import PeerUnavailable, Reason, Refusal
from twofold_chassis.revisions import Revision
from twofold_router.copies import Copies, Source
from twofold_router.knowledge import Knowledge, Place, Stamp, StreamState, Thing
from twofold_router.limits import Counted, LimitsSource
from twofold_router.permissions import PairKey, Permission, Verdict
from twofold_router.resolution import Question, Resolution, Resolver
from twofold_router.routes import AgentKey, Route
from twofold_router.targets import Targets, View
from twofold_router.terms import Terms, TermsKey

_DECIDE_S = 5.0
_SHARE = 0.7
"""Of the caller's time: the rest is for telling."""
_RETRY_S = 1.0

Key = TypeVar("Key")
Value = TypeVar("Value")


class Found(NamedTuple):
    """A copy. `why_not` is empty if it may be answered from; `age_s` is None where nobody knows it."""

    source: Source
    value: str
    stamp: Stamp
    age_s: float | None
    why_not: str


class Fact(NamedTuple):
    """What an answer rests on: the copies of it, the oldest revision at which one may have been read, and why that is so."""

    name: str
    copies: Sequence[Found]
    floor: int
    changes: Sequence[tuple[Thing, int | None]]


class Lease(NamedTuple):
    """For how long copies may be answered from, and what that hangs on."""

    words: str
    lease_s: float
    left_s: float
    ping_age_s: float | None
    registered_left_s: float | None
    place: Place
    base: int
    stream: StreamState
    stream_age_s: float
    routers: int

    @property
    def holds(self) -> bool:
        """Whether copies may be answered from."""
        return self.left_s > 0


class RedisState(NamedTuple):
    """Redis, as this router sees it."""

    is_believed_gone: bool
    trouble: str
    generation: int


class Explanation(NamedTuple):
    """All of it. `views` are the agent's targets, in the order in which this user's messages go to them."""

    summary: str
    decision: Resolution | Refusal
    facts: Sequence[Fact]
    lease: Lease
    redis: RedisState
    generation: int
    views: Sequence[View]
    now: float


class Explainer:
    """Explains."""

    def __init__(
        self,
        knowledge: Knowledge,
        permissions: Copies[PairKey, Permission],
        routes: Copies[AgentKey, Route | None],
        terms: Copies[TermsKey, Terms | None],
        targets: Targets,
        resolver: Resolver,
        redis: Callable[[], RedisState],
    ) -> None:
        self._knowledge = knowledge
        self._permissions = permissions
        self._routes = routes
        self._terms = terms
        self._targets = targets
        self._resolver = resolver
        self._redis = redis

    async def explain(self, question: Question) -> Explanation:
        """What is known, and what would be answered."""
        pair, agent, least = question.pair, question.agent, question.least
        facts = [
            await self._fact("permission", self._permissions, pair, least, _permission_words),
            await self._fact("route", self._routes, agent, least, _route_words),
            await self._fact("terms", self._terms, question.terms_key, least, _terms_words),
        ]
        decision = await self._decide(question)
        now = boot_s()
        lease = self._lease(now)
        route, terms = await self._known(self._routes, agent), await self._known(self._terms, question.terms_key)
        home = None if terms is None else terms.home
        views = [] if route is None else self._targets.views(agent, route, question.user_id, home, now)
        generation = 0 if route is None else route.generation
        summary = _summary(question, decision, lease)
        if terms is not None and terms.limits and isinstance(decision, Resolution):
            summary += _limits_words(decision.counted)
        return Explanation(summary, decision, facts, lease, self._redis(), generation, views, now)

    async def _decide(self, question: Question) -> Resolution | Refusal:
        within_s = min(_DECIDE_S, _SHARE * call.current().left_s())
        try:
            async with asyncio.timeout(within_s):
                return await self._resolver.resolve(question, peek=True)
        except Refusal as refusal:
            return refusal
        except TimeoutError:
            return PeerUnavailable(
                f"the registry has not answered within {within_s:.1f} s", retry_after_s=_RETRY_S, peer="registry"
            )

    async def _fact(
        self, name: str, copies: Copies[Key, Value], key: Key, least: Revision | None, words: Callable[[Value], str]
    ) -> Fact:
        things = copies.rests_on(key)
        held = copies.peek(key, boot_s())
        shared = await copies.shared(key)
        now = boot_s()
        found = []
        if held is not None:
            problem = why_not(self._knowledge, held.stamp, things, least, now)
            found.append(Found(Source.PROCESS, words(held.value), held.stamp, max(0.0, now - held.read_at), problem))
        if shared is not None:
            problem = why_not(self._knowledge, shared.stamp, things, least, now)
            found.append(Found(Source.CACHE, words(shared.value), shared.stamp, None, problem))
        changes = [(thing, self._knowledge.changed_at(thing)) for thing in things]
        return Fact(name, found, self._knowledge.floor(things), changes)

    async def _known(self, copies: Copies[Key, Value | None], key: Key) -> Value | None:
        """What is known here, else what Redis has, whether or not it may be answered from."""
        held = copies.peek(key, boot_s())
        if held is not None:
            return held.value
        shared = await copies.shared(key)
        return None if shared is None else shared.value

    def _lease(self, now: float) -> Lease:
        knowledge, stream = self._knowledge, self._knowledge.stream
        pinged_at = knowledge.pinged_at
        return Lease(
            words=_lease_words(knowledge, now),
            lease_s=knowledge.lease_s,
            left_s=max(0.0, knowledge.until() - now) if knowledge.is_known else 0.0,
            ping_age_s=None if pinged_at is None else max(0.0, now - pinged_at),
            registered_left_s=max(0.0, knowledge.registered_until - now) if knowledge.is_known else None,
            place=knowledge.place,
            base=knowledge.base,
            stream=stream,
            stream_age_s=max(0.0, now - stream.since),
            routers=knowledge.routers,
        )


def why_not(knowledge: Knowledge, stamp: Stamp, things: Sequence[Thing], least: Revision | None, now: float) -> str:
    """Why a copy that was read then may not be answered from; empty exactly if it may."""
    reasons = []
    if not knowledge.has_lease(now):
        reasons.append("the registry's word that nothing has changed is too old")
    if stamp.epoch != knowledge.place.epoch:
        reasons.append(f"it is of epoch {stamp.epoch} of the registry's history, which is in {knowledge.place.epoch}")
    elif stamp.revision < knowledge.floor(things):
        reasons.append(_outdated(knowledge, stamp, things))
    if least is not None and not knowledge.holds(stamp, least):
        reasons.append("it does not hold the revision that is asked for")
    return "; ".join(reasons)


def _outdated(knowledge: Knowledge, stamp: Stamp, things: Sequence[Thing]) -> str:
    since = [(thing[0], knowledge.changed_at(thing)) for thing in things]
    changed = [f"{kind} at {revision}" for kind, revision in since if revision is not None and revision > stamp.revision]
    if changed:
        return f"it was read at revision {stamp.revision}, and these have changed since: {', '.join(changed)}"
    return f"it was read at revision {stamp.revision}, and of what came before {knowledge.base} not all was heard"


def _summary(question: Question, decision: Resolution | Refusal, lease: Lease) -> str:
    who = f"user {question.user_id!r}, agent {question.agent.agent_id!r}"
    if isinstance(decision, Resolution):
        target = f" (target {decision.target.name!r})" if decision.target.name else ""
        ground = "a grant" if decision.ruling.verdict is Verdict.GRANT else "the user's role"
        where = f"messages go to {decision.target.url}{target}, which is {decision.choice.state.value}"
        return f"Allowed for {who}, by {ground}: {where}."
    reason = Reason.Name(decision.reason)
    again = "" if decision.retry_after_s is None else f" Ask again in {decision.retry_after_s:.1f} s."
    if isinstance(decision, PeerUnavailable) and not lease.holds:
        return f"Nobody can tell for {who}: {reason}, {decision.message}. {lease.words}{again}"
    return f"Refused for {who}: {reason}, {decision.message}.{again}"


def _lease_words(knowledge: Knowledge, now: float) -> str:
    stream = knowledge.stream
    told = "changes are heard" if stream.is_open else f"changes are not heard, because {stream.trouble}"
    lasting = f"for {max(0.0, now - stream.since):.1f} s {told}"
    if not knowledge.is_known:
        return f"Copies may not be answered from: the registry has given no word yet; {lasting}."
    if knowledge.has_lease(now):
        return f"Copies may be answered from for another {knowledge.until() - now:.2f} s; {lasting}."
    if now >= knowledge.registered_until:
        return f"Copies may not be answered from: this router is not registered any more; {lasting}."
    since = "" if knowledge.pinged_at is None else f" was asked for {now - knowledge.pinged_at:.1f} s ago, and"
    return (
        f"Copies may not be answered from: the registry's last word{since} counts for {knowledge.lease_s:g} s; {lasting}."
        " Each answer is read from the registry, and without it there is none."
    )


def _permission_words(permission: Permission) -> str:
    ends = "" if permission.ends_s is None else f" until {_moment(permission.ends_s)}"
    return _VERDICTS[permission.verdict] + ends


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


_VERDICTS: dict[Verdict, str] = {
    Verdict.GRANT: "a grant",
    Verdict.ROLE: "a role that implies use",
    Verdict.DENIED: "nothing allows it",
    Verdict.AGENT_UNKNOWN: "no such agent, and the user may know that",
    Verdict.AGENT_GONE: "the agent is gone, and the user may know that",
}


def _route_words(route: Route | None) -> str:
    if route is None:
        return "no such agent"
    state = "gone" if route.gone else "published" if route.published else "not published"
    where = ", ".join(f"{target.name} {target.url} ({target.weight})" for target in route.targets) or route.url
    return f"{state}, generation {route.generation}: {where}"


def _limits_words(counted: Counted) -> str:
    if counted.source is LimitsSource.NONE:
        return " How the limits stand cannot be told: messages pass within this router's own share of them."
    full = [limit for limit in counted.limits if limit.would_refuse and not limit.is_shadow]
    named = ", ".join(f"{limit.kind.value} ({limit.used} of {limit.amount} used)" for limit in full)
    return f" But limits are reached: {named}." if full else ""


def _terms_words(terms: Terms | None) -> str:
    if terms is None:
        return "no such workspace"
    limits = ", ".join(
        f"{limit.kind.value} {limit.amount}{' (only watched)' if limit.is_shadow else ''}" for limit in terms.limits
    )
    capped = f"; a hard cap of {terms.capped_month} is reached" if terms.capped_month else ""
    hosts = ", ".join(terms.home.suffixes) or "none of its own"
    return f"limits: {limits or 'none'}{capped}; hosts: {hosts}; namespace: {terms.home.namespace or 'none'}"
