"""What a router's links hold is put into the table of sessions, kept there, and compared with it.

Links are the truth. The table may lose all or some of it, begin anew, be told something late by a router that stood still,
and have sessions closed by others, of which it keeps a list.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from twofold_chassis.clocks import boot_s
from twofold_router.flights import Flights
from twofold_router.link import Link
from twofold_router.pods import Kept, Leases, PodTable
from twofold_router.sessions import CloseReason, Session, SessionKey, TableUnavailable

_CLOSING_MAX = 100_000
_AT_ONCE = 100
_ROUNDS_MAX = 3
_REFRESHED_EACH_S = 3600.0
_COMPARED_EACH = 10
"""How many heartbeats lie between two looks at whether the table has what a pod holds."""
_SLACK_MS = 2000


class Announcing:
    """Tells the table what links hold. `lose` hears of what a pod holds no longer, `has` says whether one here does."""

    def __init__(
        self,
        leases: Leases,
        table: PodTable,
        *,
        heartbeat_s: float,
        has: Callable[[Session], bool],
        lose: Callable[[Link, Session, CloseReason], None],
    ) -> None:
        self._leases = leases
        self._table = table
        self._heartbeat_s = heartbeat_s
        self._has = has
        self._lose = lose
        self.due = asyncio.Event()
        """Something is to be told before the next heartbeat."""
        self._closing: dict[tuple[SessionKey, int], Session] = {}
        """What is still to be removed from the table."""
        self._heard_of: dict[str, int] = {}
        """By workspace: up to when we know what others have closed."""
        self._flights: Flights[tuple[Link, str], str] = Flights()

    def remove_soon(self, session: Session) -> None:
        """It is removed from the table as soon as that can be done."""
        if len(self._closing) < _CLOSING_MAX:  # what is forgotten is found when the workspace is announced the next time
            self._closing[session.key, session.fence] = session
        self.due.set()

    async def generation(self, link: Link, workspace_id: str) -> str:
        """The generation of the workspace's table, with all that this link holds in it. Raises TableUnavailable."""
        return link.announced.get(workspace_id) or await self._announce(link, workspace_id)

    async def _announce(self, link: Link, workspace_id: str) -> str:
        """Puts all that the link holds in a workspace into its table; the generation of that. Raises TableUnavailable."""
        return await self._flights.join((link, workspace_id), lambda: self._announce_all(link, workspace_id))

    async def _announce_all(self, link: Link, workspace_id: str) -> str:
        for _ in range(_ROUNDS_MAX):
            generation = (await self._table.news(workspace_id, _now_ms())).generation
            await self._leases.serves(link.life, workspace_id)
            if await self._announced_in(link, workspace_id, generation):
                await self._reconcile(link, workspace_id)
                link.announced[workspace_id] = generation
                link.refreshed_at[workspace_id] = boot_s()
                return generation
        raise TableUnavailable("the table begins anew again and again", retry_after_s=1.0)

    async def _announced_in(self, link: Link, workspace_id: str, generation: str) -> bool:
        async def one(session: Session) -> Kept:
            # Looked at in the turn in which it is sent: what was closed before must not come back behind that.
            if not link.holds(session):
                return Kept.KEPT
            kept = await self._table.announce(generation, session)
            if kept is Kept.LOST and link.holds(session):
                self._lose(link, session, CloseReason.TAKEN_OVER)
            return kept

        sessions = link.in_workspace(workspace_id)
        for begin in range(0, len(sessions), _AT_ONCE):
            if Kept.ANEW in await asyncio.gather(*map(one, sessions[begin : begin + _AT_ONCE])):
                return False
        return True

    async def _reconcile(self, link: Link, workspace_id: str) -> None:
        """What the table still says that the pod holds, and it does not, is removed."""
        after = ""
        while True:
            ids, after = await self._table.ids(workspace_id, link.life.pod_id, after)
            for key in (SessionKey(workspace_id, one) for one in ids):
                session = None if link.get(key) is not None else await self._table.find(key)
                if session is None or session.life != link.life or key in link.opening or link.get(key) is not None:
                    continue
                await self._table.close(session, by_others=False)
            if not after:
                return

    async def remove_closed(self) -> None:
        """Removes what is to be removed. Raises TableUnavailable."""
        closing = list(self._closing.items())
        for begin in range(0, len(closing), _AT_ONCE):
            batch = closing[begin : begin + _AT_ONCE]
            await asyncio.gather(*(self._remove(session) for _, session in batch))
            for name, _ in batch:
                self._closing.pop(name, None)

    async def _remove(self, session: Session) -> None:
        if not self._has(session):  # else its pod has opened it again meanwhile
            await self._table.close(session, by_others=False)

    async def follow(self, links: Iterable[Link]) -> None:
        """For each workspace that has sessions here: has its table begun anew, and what have others closed?

        Raises TableUnavailable.
        """
        served: dict[str, list[Link]] = {}
        for link in links:
            for workspace_id in link.workspaces():
                served.setdefault(workspace_id, []).append(link)
        for gone in self._heard_of.keys() - served.keys():
            del self._heard_of[gone]
        names = list(served)
        for begin in range(0, len(names), _AT_ONCE):
            await asyncio.gather(*(self._follow_table(name, served[name]) for name in names[begin : begin + _AT_ONCE]))

    async def _follow_table(self, workspace_id: str, links: Sequence[Link]) -> None:
        news = await self._table.news(workspace_id, self._heard_of.get(workspace_id, 0))
        for session_id, fence in news.closed:
            for link in links:
                session = link.get(SessionKey(workspace_id, session_id))
                if session is not None and session.fence == fence:
                    self._lose(link, session, CloseReason.CLOSED_BY_OTHERS)
        self._heard_of[workspace_id] = max(0, news.now_ms - _SLACK_MS)
        for link in links:
            if not link.ended and (
                link.announced.get(workspace_id) != news.generation or await self._differs(link, workspace_id)
            ):
                await self._announce(link, workspace_id)

    async def _differs(self, link: Link, workspace_id: str) -> bool:
        """Whether the table has others than the pod, or was not written anew for long; looked at now and then.

        So heals what was evicted, and what came to Redis too late from a router that stood still.
        """
        now = boot_s()
        if now - link.compared_at.get(workspace_id, 0.0) < _COMPARED_EACH * self._heartbeat_s:
            return False
        link.compared_at[workspace_id] = now
        listed, after = set(), ""
        while True:
            ids, after = await self._table.ids(workspace_id, link.life.pod_id, after)
            listed.update(ids)
            if not after:
                break
        held = {session.key.session_id for session in link.in_workspace(workspace_id)}
        return listed != held or now - link.refreshed_at.get(workspace_id, 0.0) > _REFRESHED_EACH_S

    async def close(self) -> None:
        """Ends what is under way, and removes what is still to be removed. Raises TableUnavailable."""
        await self._flights.close()
        await self.remove_closed()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
