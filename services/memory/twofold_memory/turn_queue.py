"""Those who wait for a conversation to be free: in order of arrival, across workers.

Their places stand in Postgres. Each worker renews those of its own calls, with one question for all of them, and is told by
the answer who may try; a place that is not renewed belongs to a worker that is gone, and holds nobody up for long.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from twofold_chassis import call
from twofold_chassis.refusals import Overloaded, Refusal
from twofold_memory.threads import ThreadKey

_PERIOD_S = 0.1
_AT_ONCE = 500
_WAITING_MAX = 1000


class Ticket(NamedTuple):
    """One call that waits."""

    key: ThreadKey
    turn_id: str
    id: str


class Store(Protocol):
    """The truth about who waits."""

    async def waiters_are_here(self, tickets: Sequence[Ticket]) -> Sequence[bool]:
        """Renews their places; for each whether it may try."""
        ...

    async def leave(self, ticket: Ticket) -> None:
        """Gives a place up."""
        ...


class TurnQueue:
    """The calls of this worker that wait."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()

    @property
    def count(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def called(self, ticket: Ticket) -> None:
        """Returns when it may be this ticket's turn: to be tried, and to be asked again if it was not."""
        if len(self._waiting) >= _WAITING_MAX:
            raise Overloaded("too many calls wait for a turn", retry_after_s=1.0)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        if self._asking is None or self._asking.done():
            self._asking = call.begin_for_all(self._ask())
        try:
            await future
        finally:
            self._waiting.pop(ticket, None)

    def leave(self, ticket: Ticket) -> None:
        """Gives its place up, in the background."""
        task = asyncio.create_task(self._leave(ticket))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def wake(self) -> None:
        """A conversation may be free now: asks at once."""
        self._woken.set()

    async def drain(self) -> None:
        """Returns when nothing is under way. Nobody may wait any more."""
        while self._leaving:
            await asyncio.wait(self._leaving)
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> None:
        while self._waiting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PERIOD_S):
                    await self._woken.wait()
            self._woken.clear()
            tickets = list(self._waiting)
            for begin in range(0, len(tickets), _AT_ONCE):
                await self._call(tickets[begin : begin + _AT_ONCE])

    async def _call(self, tickets: Sequence[Ticket]) -> None:
        try:
            answers = await self._store.waiters_are_here(tickets)
        except Refusal:
            return  # Postgres is away or busy: they go on waiting, each for as long as it wants to
        for ticket, may_try in zip(tickets, answers, strict=True):
            future = self._waiting.get(ticket)
            if may_try and future is not None and not future.done():
                future.set_result(None)

    async def _leave(self, ticket: Ticket) -> None:
        with contextlib.suppress(Refusal):  # then it is given up when it is not renewed
            await self._store.leave(ticket)
