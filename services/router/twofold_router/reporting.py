"""Reporting: what became of messages is taken in, and what that says of targets is spread.

To the other routers within a second or so, over Redis: what that loses each of them finds out by itself. To the registry,
for people and for routers that come later, if it does not know it yet: seldom, and never while somebody waits.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple, Protocol

import structlog

from twofold_chassis.alongside import alongside
from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import Refusal, Unavailable
from twofold_router.copies import Copies
from twofold_router.outcomes import Outcome, Outcomes, TargetKey, Told
from twofold_router.routes import AgentKey, Observation, Route
from twofold_router.targets import Targets

_CHANGED_MAX = 1000
_TOLD_MAX = 10_000
_TOLD_AT_ONCE = 16


class Report(NamedTuple):
    """What became of one message, and how long that took from when it was dialled."""

    generation: int
    target_name: str
    outcome: Outcome
    latency_s: float = 0.0


class Board(Protocol):
    """Where routers tell one another which targets rest."""

    async def swap(self, failing: Sequence[Told], reached: Sequence[TargetKey]) -> Sequence[Told] | None:
        """Adds what has failed, takes away what was reached, and returns all that rests; None if nobody answers."""
        ...


class Observations(Protocol):
    """What the registry keeps of targets."""

    async def tell(self, key: TargetKey, seen: Observation) -> None:
        """Tells it. Raises what the registry refuses."""
        ...


class Reporting:
    """Takes outcomes in, and spreads what they say for as long as `spreading` runs."""

    def __init__(
        self,
        outcomes: Outcomes,
        targets: Targets,
        routes: Copies[AgentKey, Route | None],
        board: Board,
        observations: Observations,
        *,
        count: Callable[[Outcome], None],
        period_s: float = 1.0,
        told_again_s: float = 30.0,
    ) -> None:
        self._outcomes = outcomes
        self._targets = targets
        self._routes = routes
        self._board = board
        self._observations = observations
        self._count = count
        self._period_s = period_s
        self._told_again_s = told_again_s
        self._changed: dict[TargetKey, None] = {}
        self._told: OrderedDict[TargetKey, float] = OrderedDict()
        self._resting: set[TargetKey] = set()
        self._logger = structlog.get_logger("twofold.reporting")

    def hear(self, agent: AgentKey, report: Report) -> None:
        """Takes in what became of a message. Asks nobody, and never refuses."""
        now = boot_s()
        key = TargetKey(*agent, report.generation, report.target_name)
        self._targets.hear(key, report.outcome, report.latency_s, self._route(agent, now), now)
        self._count(report.outcome)
        if len(self._changed) < _CHANGED_MAX:
            self._changed[key] = None

    @contextlib.asynccontextmanager
    async def spreading(self) -> AsyncIterator[None]:
        """Spreads what is heard until the block ends."""
        async with alongside(self._spread()):
            yield

    async def spread_once(self) -> None:
        """Tells the other routers, hears of them, and tells the registry."""
        await self._swap()
        await self._tell()

    async def _spread(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            try:
                await self.spread_once()
            except Exception as error:
                # Whatever it was, the next time must come: else this router would tell nobody anything again.
                self._logger.error("spreading what was heard failed", exc_info=error)

    async def _swap(self) -> None:
        asked_at = boot_s()
        news = self._outcomes.news()
        failing = [Told(key, heard.rests_until - asked_at, heard.failures) for key, heard in news.items() if heard.failures]
        reached = [key for key, heard in news.items() if not heard.failures]
        told = await self._board.swap(failing, reached)
        if told is None:
            return
        now = boot_s()
        for each in told:
            self._outcomes.rest(each, asked_at, now)
        resting = {each.key for each in told}
        for key in self._resting - resting:
            self._outcomes.wake(key, now)
        self._resting = resting

    async def _tell(self) -> None:
        now = boot_s()
        due = [key for key in self._changed if now - self._told.get(key, float("-inf")) >= self._told_again_s]
        for key in due[:_TOLD_AT_ONCE]:
            del self._changed[key]
            route = self._route(AgentKey(key.workspace_id, key.agent_id), now)
            seen = None if route is None else self._targets.news_of(key, route, now)
            if seen is None:
                continue
            self._told[key] = now
            self._told.move_to_end(key)
            if len(self._told) > _TOLD_MAX:
                self._told.popitem(last=False)
            try:
                await self._observations.tell(key, seen)
            except Unavailable:
                return  # nobody is there to be told; what is heard later is told later
            except Refusal:
                continue  # the agent is gone, or has other targets by now

    def _route(self, agent: AgentKey, now: float) -> Route | None:
        held = self._routes.peek(agent, now)
        return None if held is None else held.value
