"""Routers: who may answer from what it has heard, how far each has applied it, and waiting until all have.

A change that takes something away is safe to answer for once no router can still answer from before it: each registered one
has acknowledged it, or the lease has run out under which the others answer. See Gray & Cheriton, Leases, 1989.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

import structlog

from twofold_chassis import call
from twofold_chassis.gathering import Gathering
from twofold_chassis.refusals import Refusal
from twofold_registry.revisions import Revision

REGISTERED_S = 60
_RENEW_BELOW_MS = REGISTERED_S * 1000 // 2
_ASK_EACH_S = 0.01
_LISTED_MAX = 1000


class RouterKey(NamedTuple):
    """A router process."""

    router_id: str
    incarnation: str


class Acked(NamedTuple):
    """How far a router has said that it has applied everything."""

    router: RouterKey
    epoch: int
    revision: int


class Registered(NamedTuple):
    """A router that is registered, and until when by the database's clock."""

    acked: Acked
    expires_at: datetime


class Progress(NamedTuple):
    """How far all registered routers are, and for how long the epoch has lasted."""

    epoch_age_s: float
    routers: Sequence[Registered]


class Waited(NamedTuple):
    """What became of waiting: so many have acknowledged, of so many the lease has run out instead."""

    acked: int
    expired: int


class Registrations(Protocol):
    """The routers that are kept."""

    async def register(self, router: RouterKey) -> None:
        """Registers for 60 s from now; committed when it returns."""
        ...

    async def renew(self, routers: Sequence[RouterKey]) -> None:
        """The same for those whose registration has not run out."""
        ...

    async def leave(self, router: RouterKey) -> None:
        """Ends a registration."""
        ...

    async def ack(self, acks: Sequence[Acked]) -> None:
        """Keeps how far each is; never goes back."""
        ...

    async def progress(self) -> Progress:
        """How far all are that are registered now."""
        ...


class Routers:
    """Registrations and acknowledgements, and those who wait for them.

    `lease_s` is the longest for which a router answers from what it knows, counted from before it was read; `margin_s`
    covers what clocks and schedulers add.
    """

    def __init__(self, registrations: Registrations, *, lease_s: float, margin_s: float = 0.05) -> None:
        self._registrations = registrations
        self._held_s = lease_s + margin_s
        self._acks: Gathering[Acked, None] = Gathering(self._write_acks, batch_max=500, waiting_max=10_000)
        self._waits: set[_Wait] = set()
        self._asking: asyncio.Task[None] | None = None
        self._logger = structlog.get_logger("twofold.routers")

    async def register(self, router: RouterKey) -> None:
        """Registers a router, before it is told anything."""
        await self._registrations.register(router)

    async def leave(self, router: RouterKey) -> None:
        """The router will answer nothing any more."""
        await self._registrations.leave(router)

    async def renew(self, here: Sequence[RouterKey], left_ms: Mapping[RouterKey, int]) -> None:
        """Renews those of the routers here that are registered for less than half of the time."""
        due = [router for router in here if 0 < left_ms.get(router, 0) < _RENEW_BELOW_MS]
        if due:
            await self._registrations.renew(due)

    def ack(self, router: RouterKey, epoch: int, revision: int) -> None:
        """The router has applied everything up to there. If it cannot be kept, whoever waits for it waits for the lease."""
        self._acks.ask(Acked(router, epoch, revision))

    async def list(self) -> Sequence[Registered]:
        """Those that are registered now: the first 1,000 of them."""
        return (await self._registrations.progress()).routers[:_LISTED_MAX]

    async def until_all(self, revision: Revision) -> Waited:
        """Returns when no router answers from before this revision, which is committed; at the latest a lease from now.

        Not before a lease after the beginning of the epoch: a database that was failed over may know no router, while all
        of them still answer.
        """
        wait = _Wait(revision)
        self._waits.add(wait)
        if self._asking is None or self._asking.done():
            self._asking = call.begin_for_all(self._ask())
        # Whatever becomes of asking. The loop's clock stands still in a suspended machine: so it is never too early.
        ending = asyncio.get_running_loop().call_later(self._held_s, wait.end)
        try:
            return await wait.over
        finally:
            ending.cancel()
            self._waits.discard(wait)

    async def close(self) -> None:
        """Returns when every acknowledgement is kept or refused."""
        await self._acks.drain()
        if self._asking is not None:
            await self._asking

    async def _ask(self) -> None:
        """One statement each 10 ms serves all who wait."""
        failed = False
        while self._waits:
            asked = list(self._waits)
            try:
                progress = await self._registrations.progress()
                failed = False
            except Exception as error:  # the lease runs out also where nobody can be asked
                if not failed and not isinstance(error, Refusal):
                    self._logger.error("routers cannot be asked", exc_info=error)
                failed = True
            else:
                for wait in asked:
                    wait.look(progress, is_settled=progress.epoch_age_s > self._held_s)
            await asyncio.sleep(_ASK_EACH_S)

    async def _write_acks(self, acks: Sequence[Acked]) -> Sequence[None]:
        newest: dict[RouterKey, Acked] = {}
        for ack in acks:
            known = newest.get(ack.router)
            if known is None or known[1:] < ack[1:]:
                newest[ack.router] = ack
        await self._registrations.ack(list(newest.values()))
        return [None] * len(acks)


class _Wait:
    """One who waits."""

    def __init__(self, revision: Revision) -> None:
        self._place = (revision.epoch, revision.number)
        self._seen = Waited(0, 0)
        self.over: asyncio.Future[Waited] = asyncio.get_running_loop().create_future()

    def look(self, progress: Progress, *, is_settled: bool) -> None:
        acked = sum(router.acked[1:] >= self._place for router in progress.routers)
        self._seen = Waited(acked, expired=len(progress.routers) - acked)
        if is_settled and not self._seen.expired:
            self.end()

    def end(self) -> None:
        if not self.over.done():
            self.over.set_result(self._seen)
