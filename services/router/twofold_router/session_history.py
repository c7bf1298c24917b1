"""The history of sessions, told to the registry in batches: beside what happens, never in its way."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

import structlog

from twofold_chassis.alongside import alongside
from twofold_chassis.refusals import PeerUnavailable, Refusal
from twofold_router.sessions import CloseReason, Session

EVENTS_MAX = 50_000
_BATCH_MAX = 500
_GATHER_S = 0.5
_AGAIN_S = (0.5, 10.0)
_DRAIN_S = 3.0
_EARLIEST_MS = 946_684_800_000
"""The year 2000: nothing before that is kept."""


class SessionEvent(NamedTuple):
    """A pod began to hold a session, or ceased to, for a reason; when, in ms since 1970."""

    session: Session
    at_ms: int
    reason: CloseReason | None


class HistoryKeeper(Protocol):
    """The registry."""

    async def record(self, workspace_id: str, events: Sequence[SessionEvent]) -> None:
        """Keeps the events; the same ones again change nothing."""
        ...


class Drops(Protocol):
    """Counts events that were dropped."""

    def __call__(self, count: int) -> None: ...


class History:
    """What is still to be told. When the registry is away for too long, the oldest is dropped, and counted."""

    def __init__(self, keeper: HistoryKeeper, dropped: Drops, *, events_max: int = EVENTS_MAX) -> None:
        self._keeper = keeper
        self._dropped = dropped
        self._events: deque[SessionEvent] = deque()
        self._events_max = events_max
        self._woken = asyncio.Event()
        self._logger = structlog.get_logger("twofold.sessions")

    def opened(self, session: Session) -> None:
        """A pod began to hold it. Told again when the pod says hello again: the first one counts."""
        # A fence is the time at which it was given; a pod that announces another one is not believed that.
        at_ms = session.fence if _EARLIEST_MS <= session.fence <= _now_ms() else _now_ms()
        self._add(SessionEvent(session, at_ms, None))

    def closed(self, session: Session, reason: CloseReason) -> None:
        """Nobody holds it any more."""
        self._add(SessionEvent(session, _now_ms(), reason))

    @contextlib.asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        """Tells until the block ends; what is left then is told within some seconds, or dropped."""
        try:
            async with alongside(self._tell_on()):
                yield
        finally:
            with contextlib.suppress(TimeoutError, Refusal):
                async with asyncio.timeout(_DRAIN_S):
                    while self._events:
                        await self._tell()
            if self._events:
                self._dropped(len(self._events))

    def _add(self, event: SessionEvent) -> None:
        if len(self._events) >= self._events_max:
            self._events.popleft()
            self._dropped(1)
        self._events.append(event)
        self._woken.set()

    async def _tell_on(self) -> None:
        wait_s = _AGAIN_S[0]
        while True:
            await self._woken.wait()
            await asyncio.sleep(_GATHER_S)
            try:
                while self._events:
                    await self._tell()
                self._woken.clear()
                wait_s = _AGAIN_S[0]
            except PeerUnavailable:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _AGAIN_S[1])
            except Exception as error:
                # Whatever it was: what comes later is told.
                self._logger.error("the history of sessions cannot be told", exc_info=error)
                await asyncio.sleep(wait_s)

    async def _tell(self) -> None:
        """The oldest ones of one workspace. They stay until they are kept, unless the registry does not want them."""
        workspace_id = self._events[0].session.key.workspace_id
        batch: list[SessionEvent] = []
        for event in self._events:
            if event.session.key.workspace_id == workspace_id:
                batch.append(event)
                if len(batch) >= _BATCH_MAX:
                    break
        try:
            await self._keeper.record(workspace_id, batch)
        except PeerUnavailable:
            raise
        except Refusal as refusal:
            self._logger.error("the registry refuses the history of sessions", error=refusal.message)
            self._dropped(len(batch))
        told = {id(event) for event in batch}
        self._events = deque(event for event in self._events if id(event) not in told)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
