"""Owing: what turns consumed is told to the ledger in the end, whoever's turns they were.

Memory keeps it with the turn until somebody acknowledges it; what is not kept there waits in this process. An event counts
once however often it is told, so routers need not agree on who tells it.
"""

import asyncio
import contextlib
import random
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import islice
from typing import Protocol

import structlog

from twofold_chassis.alongside import alongside
from twofold_chassis.refusals import Overloaded, Reason, Refusal, Unavailable
from twofold_router.conversations import TurnKey
from twofold_router.ledger import Ledger, Owed, UsageEvent

_AT_ONCE = 500
_PAGES_MAX = 200
_WAITING_MAX = 10_000
_ACKNOWLEDGE_S = 1.0
# Whoever closed a turn mostly records it a moment later.
_MIN_AGE_S = 15.0
_LAST_WORDS_S = 2.0

_logger = structlog.get_logger("twofold.usage")


class Book(Protocol):
    """Where turns are kept with what they consumed."""

    async def owed(self, page_token: str, count: int, min_age_s: float) -> tuple[Sequence[Owed], str]:
        """A page of what the ledger may not know yet, and the token of the next."""
        ...

    async def acknowledge(self, turns: Sequence[TurnKey]) -> None:
        """The ledger has what these consumed."""
        ...


class Owing:
    """Tells the ledger, for as long as `telling` runs: each `period_s` or so, all that any router has left behind."""

    def __init__(
        self,
        book: Book,
        ledger: Ledger,
        *,
        period_s: float,
        told: Callable[[int], None],
        min_age_s: float = _MIN_AGE_S,
        acknowledge_s: float = _ACKNOWLEDGE_S,
    ) -> None:
        """`told` is called with how many events a round has brought in."""
        self._book = book
        self._ledger = ledger
        self._period_s = period_s
        self._told = told
        self._min_age_s = min_age_s
        self._acknowledge_s = acknowledge_s
        self._recorded: deque[TurnKey] = deque(maxlen=_WAITING_MAX)  # what is dropped is told, and acknowledged, once more
        self._waiting: deque[UsageEvent] = deque()

    @property
    def waiting(self) -> int:
        """How many events wait in this process alone."""
        return len(self._waiting)

    def recorded(self, turn: TurnKey) -> None:
        """The ledger has it: memory is told so in a moment, many at a time."""
        self._recorded.append(turn)

    def owe(self, event: UsageEvent) -> None:
        """Nobody else keeps it."""
        if len(self._waiting) < _WAITING_MAX:
            self._waiting.append(event)
        else:
            _logger.error("usage lost: too much waits for the registry", event_id=event.event_id)

    @contextlib.asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        """As long as the block runs; what waits in this process is tried once more at its end."""
        try:
            async with (
                alongside(self._repeated(self._acknowledge_s, self.acknowledge)),
                alongside(self._repeated(self._period_s, self.round)),
            ):
                yield
        finally:
            with contextlib.suppress(Refusal, TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._tell_waiting()
                    await self.acknowledge()

    async def round(self) -> None:
        """Tells all that is owed for a while. Raises what keeps it from going on."""
        await self._tell_waiting()
        page_token = ""
        for _ in range(_PAGES_MAX):
            page, page_token = await self._book.owed(page_token, _AT_ONCE, self._min_age_s)
            known = await self._record(page)
            self._told(len(known))
            for owed in known:
                if owed.turn is not None:
                    self.recorded(owed.turn)
            if not page_token:
                break
        await self.acknowledge()

    async def acknowledge(self) -> None:
        """Tells memory what the ledger has."""
        while self._recorded:
            # Taken out before they are told: both loops come here, and each turn is one's.
            turns = [self._recorded.popleft() for _ in range(min(len(self._recorded), _AT_ONCE))]
            try:
                await self._book.acknowledge(turns)
            except BaseException:
                self._recorded.extendleft(reversed(turns))
                raise

    async def _tell_waiting(self) -> None:
        while self._waiting:
            events = [Owed(event, None) for event in islice(self._waiting, _AT_ONCE)]
            known = await self._record(events)
            if not known:
                return
            settled = {owed.event.event_id for owed in known}
            self._waiting = deque(event for event in self._waiting if event.event_id not in settled)
            self._told(len(known))

    async def _record(self, owed: Sequence[Owed]) -> list[Owed]:
        """Those that the ledger has now. Raises Unavailable and Overloaded; what it will not take stays owed."""
        by_workspace: dict[str, list[Owed]] = defaultdict(list)
        for each in owed:
            by_workspace[each.event.workspace_id].append(each)
        known = []
        for workspace_id, mine in by_workspace.items():
            if await self._taken(workspace_id, mine):
                known += mine
            elif len(mine) > 1:  # one of them spoils the batch
                known += [each for each in mine if await self._taken(workspace_id, [each])]
        return known

    async def _taken(self, workspace_id: str, owed: Sequence[Owed]) -> bool:
        try:
            await self._ledger.record(workspace_id, [each.event for each in owed])
        except (Unavailable, Overloaded):
            raise
        except Refusal as refusal:
            if len(owed) > 1:
                return False
            if refusal.reason == Reason.REASON_EVENT_REUSED:
                return True  # counted already, as it was told first
            _logger.warning("usage not taken", event_id=owed[0].event.event_id, reason=Reason.Name(refusal.reason))
            return False
        return True

    async def _repeated(self, period_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(period_s * random.uniform(0.5, 1.5))
            try:
                await work()
            except Refusal as refusal:
                _logger.debug("usage waits", reason=Reason.Name(refusal.reason))
            except Exception as error:
                # Whatever it was, the next round must come: the loop may not die.
                _logger.error("telling usage failed", exc_info=error)
