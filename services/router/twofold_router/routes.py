"""Routes: what a turn needs to know of an agent, where it is read, and for how long a copy of it serves."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import Protocol

from twofold_chassis import call
from twofold_chassis.call import Call
from twofold_chassis.refusals import NotFound, Reason
from twofold_router.agents import Limits
from twofold_router.flights import Flights
from twofold_router.metrics import Metrics


class AgentUnknown(NotFound):
    """There is no such agent."""

    reason = Reason.REASON_AGENT_UNKNOWN

    def __init__(self, agent: "AgentKey") -> None:
        super().__init__(f"no agent {agent.agent_id!r}", workspace_id=agent.workspace_id, agent_id=agent.agent_id)


@dataclass(frozen=True, slots=True)
class AgentKey:
    """Which agent."""

    workspace_id: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How a turn calls the agent."""

    instructions: str
    model: str
    as_messages: bool
    context_messages_max: int
    context_tokens_max: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that takes its share of an agent's messages."""

    name: str
    url: str
    weight: int


@dataclass(frozen=True, slots=True)
class Route:
    """What the registry said of an agent at the revision `stamp`, when it was asked at `read_at` (seconds since 1970).

    `gone`: it takes no messages, and never will. `targets`: how they are split; without them everything goes to `url`.
    """

    url: str
    published: bool
    settings: AgentSettings
    stamp: bytes
    read_at: float
    gone: bool = False
    targets: tuple[Target, ...] = ()

    def url_for(self, agent: AgentKey, user_id: str) -> str:
        """Where this user's messages go: the same for every router, and changed for as few as a change of weights allows."""
        sharing = [target for target in self.targets if target.weight > 0]
        if not sharing:
            return self.url
        return max(sharing, key=lambda target: _score(target, agent, user_id)).url


class Source(Enum):
    """Where a route came from."""

    CACHE = "cache"
    REGISTRY = "registry"


@dataclass(frozen=True, slots=True)
class Sourced:
    """A route and where it came from."""

    route: Route
    source: Source


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found in the cache. `mark` names it for a later put. Not answered: the cache is not there."""

    route: Route | None = None
    mark: bytes = b""
    answered: bool = True


class RouteCache(Protocol):
    """Copies of routes that may be lost at any time: neither method raises because the cache is not there."""

    async def get(self, agent: AgentKey) -> Seen:
        """What is there now."""
        ...

    async def put(self, agent: AgentKey, route: Route, *, instead_of: bytes, ttl_s: float) -> bool:
        """Puts the route, unless something else than what `instead_of` marks is there by now; True if it was put."""
        ...


class RouteTruth(Protocol):
    """The owner of the routes."""

    async def get(self, agent: AgentKey) -> Route:
        """The route as it is now. Refuses with AgentUnknown."""
        ...


class Routes:
    """Routes through the cache: a copy is used until `ttl_s` after the owner was asked."""

    def __init__(
        self,
        cache: RouteCache,
        truth: RouteTruth,
        metrics: Metrics,
        *,
        ttl_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._truth = truth
        self._metrics = metrics
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._flights: Flights[tuple[AgentKey, bytes], Sourced] = Flights()

    async def get(self, agent: AgentKey, at_least: bytes = b"") -> Sourced:
        """The agent's route, at least as new as the revision token, if one is given. Refuses with AgentUnknown."""
        # Only callers with the same token share a reading: one that began before the token was issued may be too old.
        return await self._flights.join((agent, at_least), lambda: self._read(agent, at_least))

    async def close(self) -> None:
        """Ends readings that are under way."""
        await self._flights.close()

    async def _read(self, agent: AgentKey, at_least: bytes) -> Sourced:
        # The reading belongs to all who wait for it: its time is its own, not what its first caller has left.
        first = call.current()
        call.enter(Call(first.identity, first.request_id, time.monotonic() + self._timeout_s))
        seen = await self._cache.get(agent)
        if seen.route is not None and _serves(seen.route, at_least):
            self._metrics.route_found()
            return Sourced(seen.route, Source.CACHE)
        self._metrics.route_missed(cache_answered=seen.answered)
        asked_at = time.monotonic()
        route = await self._truth.get(agent)
        left_s = self._ttl_s - (time.monotonic() - asked_at)
        if seen.answered and left_s > 0:
            await self._cache.put(agent, route, instead_of=seen.mark, ttl_s=left_s)
        return Sourced(route, Source.REGISTRY)

    def age_s(self, route: Route) -> float:
        """How long ago the owner was asked. Clocks of two routers may differ: 0 at least, at most what a copy lives."""
        return min(max(0.0, self._clock() - route.read_at), self._ttl_s)


def _score(target: Target, agent: AgentKey, user_id: str) -> float:
    # Weighted rendezvous: each target draws a number for the user, and the highest wins as often as its weight says.
    told = "\0".join((agent.workspace_id, agent.agent_id, user_id, target.name)).encode()  # no id holds a NUL
    drawn = int.from_bytes(blake2b(told, digest_size=8).digest(), "big") >> 12
    return target.weight / -math.log((drawn + 0.5) / 2**52)  # of 52 bits, so that no fraction is rounded to 1


def _serves(route: Route, at_least: bytes) -> bool:
    # Tokens are opaque: of two that differ nobody but the registry knows which is newer. So a copy serves who asks for
    # a revision only if it was read at that very one; else it is read again.
    return not at_least or route.stamp == at_least
