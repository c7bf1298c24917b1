"""Links: the pods that are connected to this router, what they open and close, and how the table learns of it.

A link's sessions are kept here as its pod knows them, so that they can be closed and put into the table again whatever
becomes of Redis. A heartbeat is good if the lease could be extended in Redis, or, while that is away, if the registry says
that the pod is alive: whoever takes a session from a dead pod waits for a lease after that verdict, so both are safe.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from twofold_chassis import call
from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import InvalidField, Overloaded, PeerUnavailable, Refusal
from twofold_router.announcing import Announcing
from twofold_router.link import Link
from twofold_router.permissions import PairKey
from twofold_router.pods import (
    Ack,
    Alive,
    Announce,
    Beat,
    Close,
    Closed,
    Closes,
    Done,
    Drain,
    Fenced,
    Heartbeat,
    HeldSession,
    Hello,
    Kept,
    Leases,
    Leave,
    Open,
    Opened,
    Placed,
    PodFenced,
    PodState,
    PodTable,
    Reannounce,
    Refused,
    Registrar,
    Said,
    Sweeper,
    Told,
    TooManyLinks,
    Touch,
    Welcome,
    Wrong,
)
from twofold_router.resolution import Question, Resolver, Ruling, require_permitted
from twofold_router.revocations import Revocations
from twofold_router.routes import AgentKey
from twofold_router.sessions import (
    CloseReason,
    Message,
    PodLife,
    Session,
    SessionHeld,
    SessionKey,
    SessionLost,
    TableUnavailable,
    TooManySessions,
    lost,
)

_CALLS_MAX = 256
_BEATS_MAX = 4
_ROUNDS_MAX = 3
_ASKED_EACH_S = 60.0
"""How often the registry is asked about the pods here: one that nobody asks about is marked dead in the end."""
_ANNOUNCING_S = 30.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Times and bounds of links."""

    lease_s: float
    heartbeat_s: float
    links_max: int
    per_pod_max: int
    per_user_max: int
    queue_bytes_max: int


class LinkCounts(Protocol):
    """What is counted."""

    def links_changed(self, count: int) -> None: ...

    def sessions_changed(self, count: int) -> None: ...

    def session_opened(self, *, listed: bool) -> None: ...


class Links:
    """The links of this router."""

    def __init__(
        self,
        resolver: Resolver,
        leases: Leases,
        table: PodTable,
        registrar: Registrar,
        *,
        opened: Callable[[Session], None],
        closed: Closes,
        counts: LinkCounts,
        bounds: Bounds,
        router_id: str,
    ) -> None:
        self._resolver = resolver
        self._leases = leases
        self._table = table
        self._registrar = registrar
        self._opened = opened
        self._closed = closed
        self._counts = counts
        self._bounds = bounds
        self._router_id = router_id
        self._links: dict[str, Link] = {}
        self._of_pair: dict[PairKey, set[tuple[str, SessionKey]]] = {}
        self._where: dict[SessionKey, str] = {}
        self.revocations = Revocations(resolver, self._revoked)
        self._announcing = Announcing(leases, table, heartbeat_s=bounds.heartbeat_s, has=self.has, lose=self._lose)
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked_at = boot_s()
        self._fence = 0
        self._logger = structlog.get_logger("twofold.pods")

    # A link ---------------------------------------------------------------------------------------------------

    async def serve(self, hello: Hello, said: AsyncIterator[Said]) -> AsyncGenerator[Told, None]:
        """A pod's link, until one of both ends it. Raises TooManyLinks, TooManySessions, PeerUnavailable, Draining."""
        if hello.session_count > self._bounds.per_pod_max:
            raise TooManySessions(f"a pod may hold {self._bounds.per_pod_max} sessions")
        held = await call.unless_draining(_announced(said, hello.session_count))
        try:
            life = await self._life(hello)
            link = self._joined(life, hello.address)
        except PodFenced as fenced:
            yield Fenced(fenced.message)
            return
        hearing = None
        try:
            for one in held:
                self._put(link, _session(one, life), known=False)
                self._opened(_session(one, life))
            if not link.ended and not await self._enroll(link) and not link.ended:
                raise PeerUnavailable("nobody can say whether the pod is alive", retry_after_s=1.0, peer="registry")
            link.tell(
                Welcome(
                    self._router_id,
                    life.incarnation,
                    self._bounds.heartbeat_s,
                    self._bounds.lease_s,
                    self._bounds.per_pod_max,
                )
            )
            hearing = asyncio.create_task(self._hear(link, said))
            async with aclosing(link.told()) as told:
                async for word in told:
                    yield word
        finally:
            link.end()
            if hearing is not None:
                hearing.cancel()
                await asyncio.wait([hearing])
            self._left(link)

    async def _life(self, hello: Hello) -> PodLife:
        """Which life of the pod this is. Raises PodFenced, PeerUnavailable."""
        if hello.incarnation is None:
            return await self._registrar.register(hello.pod_id, hello.address, hello.request_id)
        life = PodLife(hello.pod_id, hello.incarnation)
        (state,) = await self._registrar.states([life])
        if state is not PodState.LIVE:
            raise PodFenced(f"the registry says that this life of the pod is {state.value}")
        return life

    def _joined(self, life: PodLife, address: str) -> Link:
        other = self._links.get(life.pod_id)
        if other is None and len(self._links) >= self._bounds.links_max:
            raise TooManyLinks(f"this router has links to {self._bounds.links_max} pods", retry_after_s=1.0)
        if other is not None and other.life > life:
            raise PodFenced("the pod has begun another life")
        if other is not None:
            if other.life < life:
                other.fence("the pod has begun another life")
            else:
                other.end(SessionLost("the pod has opened another link", pod_id=life.pod_id))
            self._left(other)
        link = self._links[life.pod_id] = Link(life, address, bytes_max=self._bounds.queue_bytes_max)
        self._counts.links_changed(len(self._links))
        return link

    def _left(self, link: Link) -> None:
        """The link is over; what it held is its pod's until its lease has run out, or until it is announced elsewhere."""
        if self._links.get(link.life.pod_id) is link:
            del self._links[link.life.pod_id]
            self._counts.links_changed(len(self._links))
        for session in link.sessions():
            self._drop(link, session)

    async def _hear(self, link: Link, said: AsyncIterator[Said]) -> None:
        try:
            async for one in said:
                if link.ended:
                    return
                self._take(link, one)
            if link.tasks:  # what was asked is answered
                await asyncio.wait(link.tasks)
            link.finish()
        except Refusal as refusal:
            link.end(refusal)
        except Exception as error:  # a defect of ours: the link must not stay open and deaf
            self._logger.error("a link failed", exc_info=error)
            link.end(Overloaded("this router has failed", retry_after_s=1.0))
            raise

    def _take(self, link: Link, said: Said) -> None:
        """Does what the pod says; what takes time, beside the link. Raises InvalidField."""
        match said:
            case Heartbeat():
                link.heard_at = boot_s()
                if link.beats < _BEATS_MAX and not link.ended:
                    link.beats += 1
                    self._begin(link, self._beat(link, said))
            case Open():
                self._answer(link, said.call_id, self._open(link, said))
            case Touch():
                self._answer(link, said.call_id, self._touch(link, said))
            case Close():
                self._answer(link, said.call_id, self._close(link, said))
            case Wrong():
                link.tell(Refused(said.call_id, said.refusal))
            case Ack():
                link.acked(said.delivery)
            case Announce():
                if link.again is None or len(link.again) + len(said.sessions) > self._bounds.per_pod_max:
                    raise InvalidField("announce", "is sent behind hello, and when it is asked for")
                link.again += said.sessions
            case Leave():
                self._begin(link, self._leave(link))

    def _answer(self, link: Link, call_id: int, work: Coroutine[Any, Any, Told | None]) -> None:
        if link.calls >= _CALLS_MAX:
            work.close()
            busy = Overloaded(f"{_CALLS_MAX} calls of the pod are under way", retry_after_s=0.1)
            link.tell(Refused(call_id, busy))
            return
        link.calls += 1
        self._begin(link, self._answered(link, call_id, work))

    async def _answered(self, link: Link, call_id: int, work: Coroutine[Any, Any, Told | None]) -> None:
        try:
            told = await work
            if told is not None:
                link.tell(told)
        except Refusal as refusal:
            link.tell(Refused(call_id, refusal))
        finally:
            link.calls -= 1

    def _begin(self, link: Link, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        for tasks in (self._tasks, link.tasks):
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._logger.error("what a pod asked for failed", exc_info=error)

    # Heartbeats -----------------------------------------------------------------------------------------------

    async def _beat(self, link: Link, beat: Heartbeat) -> None:
        try:
            if await self._is_good(link) and not link.ended:
                self._compare(link, beat)
                link.tell(Alive(beat.nonce))
        finally:
            link.beats -= 1

    async def _is_good(self, link: Link) -> bool:
        """Whether the pod may go on for a lease after it sent this."""
        try:
            beat = await self._leases.beat(link.life)
            if beat is Beat.GOOD:
                link.good_until = boot_s() + self._bounds.lease_s
                return True
            if beat is Beat.MOVED:
                link.end(SessionLost("the pod has opened another link", pod_id=link.life.pod_id))
                return False
            if beat is Beat.FENCED:
                link.fence("the pod has begun another life")
                return False
        except TableUnavailable:
            return await self._is_alive(link)
        # Nobody can have ended its lease while that ran: then it is the table that has forgotten.
        was_good_until = link.good_until
        return await self._enroll(link) or (boot_s() < was_good_until and not link.ended)

    async def _enroll(self, link: Link) -> bool:
        """The pod has its link here, and a lease, if it is alive."""
        try:
            if not await self._leases.hello(link.life, link.address):
                link.fence("the pod has begun another life")
                return False
            link.good_until = boot_s() + self._bounds.lease_s
            link.announced.clear()
            self._announcing.due.set()
        except TableUnavailable:
            pass  # the registry's word is enough, and the next heartbeat tries again
        # Behind the table: whoever has it said that the pod is dead takes the lease away again after that.
        return await self._is_alive(link)

    async def _is_alive(self, link: Link) -> bool:
        """Whether the registry says so; if it says that the pod is dead, its life is over."""
        try:
            (state,) = await self._registrar.states([link.life])
        except PeerUnavailable:
            return False
        if state is not PodState.LIVE:
            await self._end_life(link, state)
        return state is PodState.LIVE

    async def _end_life(self, link: Link, state: PodState) -> None:
        link.fence(f"the registry says that this life of the pod is {state.value}")
        await self._bury(link.life)

    async def _bury(self, life: PodLife) -> None:
        with suppress(TableUnavailable):
            await self._leases.end(life)

    def _compare(self, link: Link, beat: Heartbeat) -> None:
        """Whether the pod counts as many sessions as we do; if not, twice, all of them are asked for."""
        if link.again is not None:
            announced, link.again = link.again, None
            if len(announced) == beat.session_count:
                self._replace(link, announced)
        if link.calls or beat.session_count == link.count:
            link.mismatches = 0
            return
        link.mismatches += 1
        if link.mismatches >= 2:
            link.mismatches = 0
            link.again, link.asked_about = [], frozenset(session.key for session in link.sessions())
            link.tell(Reannounce())

    def _replace(self, link: Link, announced: Sequence[HeldSession]) -> None:
        named = {one.key: one for one in announced}
        for session in link.sessions():
            if session.key in link.asked_about and session.key not in named:
                self._drop(link, session)
                self._announcing.remove_soon(session)
                self._closed(session, CloseReason.ERROR)
        for key, one in named.items():
            if link.get(key) is None:
                self._put(link, _session(one, link.life), known=False)
        self._announcing.due.set()

    # Opening, touching, closing -------------------------------------------------------------------------------

    async def _open(self, link: Link, said: Open) -> Told | None:
        question = Question(AgentKey(said.key.workspace_id, said.agent_id), said.user_id, said.least)
        await self._permitted(question)
        held = link.get(said.key)
        if held is not None and said.take_over:
            # Who takes over does not hold it: what is known of it here is of before it was given up.
            self._drop(link, held)
            held = None
        if held is None:
            self._require_room(link, said)
            link.opening.add(said.key)
            try:
                held, listed = await self._placed(link, said)
                ruling = await self._still_permitted(question, held)
            finally:
                link.opening.discard(said.key)
            # From here on nothing is awaited: a change that comes now finds the session, and the answer is on its way.
            if link.ended:
                self._announcing.remove_soon(held)
                return None
            self._put(link, held, known=True)
            self._opened(held)
            self._counts.session_opened(listed=listed)
            if not listed:
                link.announced.pop(said.key.workspace_id, None)
        else:
            if (held.user_id, held.agent_id) != (said.user_id, said.agent_id):
                raise SessionHeld("the pod holds this session for somebody else", session_id=said.key.session_id)
            ruling, listed = await self._permitted(question), True
            if not link.holds(held):
                raise SessionLost("the session was closed meanwhile", session_id=said.key.session_id)
        self.revocations.ends_in(held.pair, ruling.ends_s)
        return Opened(said.call_id, held.fence, held.opened_ms, ruling.valid_s, listed)

    async def _permitted(self, question: Question) -> Ruling:
        ruling = await self._resolver.check(question)
        require_permitted(question, ruling.verdict)
        return ruling

    async def _still_permitted(self, question: Question, session: Session) -> Ruling:
        try:
            return await self._permitted(question)
        except BaseException:
            self._announcing.remove_soon(session)
            raise

    def _require_room(self, link: Link, said: Open) -> None:
        if said.key in link.opening:
            raise SessionHeld("it is being opened", retry_after_s=0.1, session_id=said.key.session_id)
        if link.count + len(link.opening) >= self._bounds.per_pod_max:
            raise TooManySessions(f"a pod may hold {self._bounds.per_pod_max} sessions")

    async def _placed(self, link: Link, said: Open) -> tuple[Session, bool]:
        """The session under its fence, and whether the table has it."""
        # The first fence of an id that was never used needs no more than to be known before the table is asked: if that does
        # not answer, or is away, the session is announced under it.
        now_ms = _now_ms()
        session = Session(said.key, said.user_id, said.agent_id, link.life, self._new_fence(now_ms), now_ms, now_ms)
        try:
            placed = await self._tried(link, session, take_over=said.take_over)
        except TableUnavailable:
            if said.take_over or len(self._of_pair.get(session.pair, ())) >= self._bounds.per_user_max:
                raise
            return session, False
        if placed.refusal is not None:
            raise placed.refusal
        return session._replace(fence=placed.fence, opened_ms=placed.opened_ms), True

    def _new_fence(self, now_ms: int) -> int:
        """Higher than any before of this router, and, as far as clocks agree, of the others, whatever Redis has lost."""
        self._fence = max(self._fence + 1, now_ms)
        return self._fence

    async def _tried(self, link: Link, session: Session, *, take_over: bool) -> Placed:
        for _ in range(_ROUNDS_MAX):
            generation = await self._announcing.generation(link, session.key.workspace_id)
            placed = await self._table.open(generation, session, take_over=take_over, per_user_max=self._bounds.per_user_max)
            if not placed.anew:
                return placed
            link.announced.pop(session.key.workspace_id, None)
        raise TableUnavailable("the table begins anew again and again", retry_after_s=1.0)

    async def _touch(self, link: Link, said: Touch) -> Told:
        session = self._held(link, said.key, said.fence)
        now_ms = _now_ms()
        # What is not announced yet, or in a table that began anew, cannot be lost to anybody.
        generation = link.announced.get(said.key.workspace_id)
        if generation is not None and await self._table.touch(generation, session, now_ms) is Kept.LOST:
            # It may only be missing there, as what is evicted is: then it is put back, and lost to nobody.
            kept = await self._table.announce(generation, session) if link.holds(session) else Kept.LOST
            if kept is Kept.LOST:
                if link.holds(session):
                    self._drop(link, session)
                raise lost(said.key)
        if link.holds(session):
            link.put(session._replace(touched_ms=now_ms))
        return Done(said.call_id)

    async def _close(self, link: Link, said: Close) -> Told:
        session = self._held(link, said.key, said.fence)
        self._drop(link, session)
        self._closed(session, said.reason)
        try:
            if not said.give_up or not await self._table.give_up(session):
                await self._table.close(session, by_others=False)
        except TableUnavailable:
            self._announcing.remove_soon(session)  # then it is not taken over: who wants to gets a new one
        return Done(said.call_id)

    def _held(self, link: Link, key: SessionKey, fence: int) -> Session:
        session = link.get(key)
        if session is None or session.fence != fence:
            raise lost(key)
        return session

    async def _leave(self, link: Link) -> None:
        for session in link.sessions():
            self._drop(link, session)
            self._closed(session, CloseReason.DRAINED)
            self._announcing.remove_soon(session)
        await self._bury(link.life)  # what could not be removed is cleared up after
        link.end()

    # For others -----------------------------------------------------------------------------------------------

    def has(self, session: Session) -> bool:
        """Whether a pod that has its link here holds it."""
        link = self._links.get(session.life.pod_id)
        return link is not None and link.life == session.life and link.holds(session)

    def held(self, key: SessionKey) -> Session | None:
        """The session if a pod that has its link here holds it."""
        pod_id = self._where.get(key)
        link = self._links.get(pod_id) if pod_id is not None else None
        return link.get(key) if link is not None else None

    def close(self, session: Session, reason: CloseReason) -> bool:
        """The pod does not hold it any more; True if its link is here and was told."""
        link = self._links.get(session.life.pod_id)
        if link is None or not self.has(session):
            return False
        self._drop(link, session)
        self._announcing.remove_soon(session)
        return link.tell(Closed(session.key, session.fence, reason))

    def send(self, keys: Sequence[tuple[SessionKey, str]], message: Message) -> int:
        """Gives the message to the links of the sessions' pods; how many took it."""
        sent = 0
        for key, pod_id in keys:
            link = self._links.get(pod_id)
            sent += link is not None and link.get(key) is not None and link.deliver(key, message)
        return sent

    def drain(self, pod_id: str, reason: str) -> bool:
        """Asks the pod to let its sessions go; True if its link is here."""
        link = self._links.get(pod_id)
        return link is not None and link.tell(Drain(reason))

    def _revoked(self, pair: PairKey) -> None:
        for pod_id, key in list(self._of_pair.get(pair, ())):
            session = self._links[pod_id].get(key)
            if session is not None:
                self.close(session, CloseReason.REVOKED)
                self._closed(session, CloseReason.REVOKED)

    # What is held here ----------------------------------------------------------------------------------------

    def _put(self, link: Link, session: Session, *, known: bool) -> None:
        if link.get(session.key) is None:
            self._of_pair.setdefault(session.pair, set()).add((link.life.pod_id, session.key))
            self._where[session.key] = link.life.pod_id
            self.revocations.add(session.pair, known=known)
        link.put(session)
        self._counts.sessions_changed(len(self._where))

    def _drop(self, link: Link, session: Session) -> None:
        if link.get(session.key) is None:
            return
        link.drop(session.key)
        pod_id = link.life.pod_id
        if self._where.get(session.key) == pod_id:
            del self._where[session.key]
        held = self._of_pair.get(session.pair, set())
        held.discard((pod_id, session.key))
        if not held:
            self._of_pair.pop(session.pair, None)
        self.revocations.remove(session.pair)
        self._counts.sessions_changed(len(self._where))

    def _lose(self, link: Link, session: Session, reason: CloseReason) -> None:
        self._drop(link, session)
        link.tell(Closed(session.key, session.fence, reason))

    # What is done now and then --------------------------------------------------------------------------------

    async def run(self, sweeper: Sweeper) -> None:
        """Tends the links for as long as it runs: once for each heartbeat, and when something is due."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.revocations.run())
            tasks.create_task(self._again(self._tend, self._bounds.heartbeat_s, self._announcing.due))
            tasks.create_task(self._again(sweeper.sweep, self._bounds.lease_s / 10, asyncio.Event()))

    async def _again(self, work: Callable[[], Coroutine[Any, Any, None]], each_s: float, due: asyncio.Event) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(each_s):
                    await due.wait()
            due.clear()
            try:
                await work()
            except (TableUnavailable, PeerUnavailable):
                await asyncio.sleep(min(0.2, each_s))
            except Exception as error:
                # Whatever it was, it must be done again: else the table, or the dead in it, would stay as they are.
                self._logger.error("tending pods failed", exc_info=error)
                await asyncio.sleep(min(1.0, each_s))

    async def _tend(self) -> None:
        for link in list(self._links.values()):
            if boot_s() - link.heard_at > self._bounds.lease_s:
                link.end(SessionLost("no heartbeat for a lease", pod_id=link.life.pod_id))
        try:
            await self._announcing.remove_closed()
            await self._announcing.follow(list(self._links.values()))
        finally:
            if boot_s() - self._asked_at > _ASKED_EACH_S:
                await self._ask()

    async def _ask(self) -> None:
        links = list(self._links.values())
        self._asked_at = boot_s()
        for begin in range(0, len(links), 500):
            some = links[begin : begin + 500]
            states = await self._registrar.states([link.life for link in some])
            for link, state in zip(some, states, strict=True):
                if state is not PodState.LIVE:
                    await self._end_life(link, state)

    async def settle(self) -> None:
        """Waits for what is under way, and removes what is still to be removed, if Redis is there."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        with suppress(TableUnavailable):
            await self._announcing.close()


async def _announced(said: AsyncIterator[Said], count: int) -> list[HeldSession]:
    """The sessions that follow hello."""
    held: list[HeldSession] = []
    if not count:
        return held
    try:
        async with asyncio.timeout(_ANNOUNCING_S):
            async for one in said:
                if not isinstance(one, Announce):
                    break
                held += one.sessions
                if len(held) >= count:
                    break
    except TimeoutError:
        raise InvalidField("announce", f"has not come within {_ANNOUNCING_S:.0f} s") from None
    if len(held) != count:
        raise InvalidField("announce", f"names {len(held)} sessions, hello counted {count}")
    return held


def _session(held: HeldSession, life: PodLife) -> Session:
    return Session(held.key, held.user_id, held.agent_id, life, held.fence, held.opened_ms, held.opened_ms)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
