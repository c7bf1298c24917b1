"""Sessions: who is connected to which agent through which pod, as everybody else than the pods finds and reaches them.

The table of all sessions is in Redis, and may be lost there: the pods that hold them are its truth. What they do is in
links.py.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

from twofold_chassis.refusals import Aborted, NotFound, PeerUnavailable, Reason, ResourceExhausted, Unavailable
from twofold_router.permissions import PairKey

_LOOKS_MAX = 3
"""How often a session that changed while it was to be closed is looked up again."""
SCANNED_AT_ONCE = 500

Value = TypeVar("Value")


class SessionUnknown(NotFound):
    """Nobody holds such a session."""

    reason = Reason.REASON_SESSION_UNKNOWN


class SessionHeld(Aborted):
    """Another pod holds the session, and must give it up, or be dead, before anybody else may have it."""

    reason = Reason.REASON_SESSION_HELD


class SessionLost(Aborted):
    """The session is not held under this fence any more."""

    reason = Reason.REASON_SESSION_LOST


class TooManySessions(ResourceExhausted):
    """A bound of sessions is reached."""

    reason = Reason.REASON_TOO_MANY


class TableUnavailable(Unavailable):
    """Redis, where the table is, does not answer."""

    reason = Reason.REASON_REDIS_UNAVAILABLE


class CloseReason(Enum):
    """Why a session was closed."""

    CLIENT_LEFT = "client_left"
    REVOKED = "revoked"
    POD_DEAD = "pod_dead"
    IDLE = "idle"
    TAKEN_OVER = "taken_over"
    DRAINED = "drained"
    CLOSED_BY_OTHERS = "closed_by_others"
    ERROR = "error"


class SessionKey(NamedTuple):
    """Which session."""

    workspace_id: str
    session_id: str


class Incarnation(NamedTuple):
    """One life of a pod: never given twice, and greater than all before."""

    epoch: int
    number: int


class PodLife(NamedTuple):
    """A pod in one of its lives."""

    pod_id: str
    incarnation: Incarnation


class Session(NamedTuple):
    """A session, and who holds it under which fence. Times are in milliseconds since 1970, by the clock of a router."""

    key: SessionKey
    user_id: str
    agent_id: str
    life: PodLife
    fence: int
    opened_ms: int
    touched_ms: int

    @property
    def pair(self) -> PairKey:
        return PairKey(self.key.workspace_id, self.user_id, self.agent_id)


class Wanted(NamedTuple):
    """Which sessions of a workspace are looked for: None is any."""

    workspace_id: str
    user_id: str | None = None
    agent_id: str | None = None
    pod_id: str | None = None

    def fits(self, session: Session) -> bool:
        """Whether this is one of them."""
        return (
            self.user_id in (None, session.user_id)
            and self.agent_id in (None, session.agent_id)
            and self.pod_id in (None, session.life.pod_id)
        )


class LinkedPod(NamedTuple):
    """A pod that has a lease: for how long if nothing more is heard of it, and which router has its link."""

    life: PodLife
    address: str
    router_id: str
    left_ms: int


class Message(NamedTuple):
    """What is sent to a session's client."""

    message_id: str
    payload: bytes


class Sent(NamedTuple):
    """To how many sessions something was to be sent, and to how many it is on its way."""

    sessions: int
    sent: int


class Table(Protocol):
    """The table of sessions. Every method raises TableUnavailable; of a write it may have been done all the same."""

    async def find(self, key: SessionKey) -> Session | None:
        """The session, whether or not its holder has a lease."""
        ...

    async def scan(self, wanted: Wanted, after: str, count: int) -> tuple[list[Session], str]:
        """The next sessions behind an id, by id, and the id that the next ones stand behind: empty behind the last.

        At most `count` are looked at; whether their holders have leases is not.
        """
        ...

    async def close(self, session: Session, *, by_others: bool) -> bool:
        """Removes it if it is held under this fence by this life of the pod, in one step; False if it is not.

        `by_others`: not its pod, which must not announce it again if it does not hear of this.
        """
        ...


class LeaseTable(Protocol):
    """The leases of pods. Every method raises TableUnavailable."""

    async def linked(self, pod_id: str | None = None) -> list[LinkedPod]:
        """The pods that have a lease, all or this one; none right after the table was lost."""
        ...


class ToPod(Protocol):
    """The way to the pods' links. Methods return whether, or how often, a link was given it."""

    def has(self, session: Session) -> bool:
        """Whether a pod that has its link here holds it."""
        ...

    def held(self, key: SessionKey) -> Session | None:
        """The session if a pod that has its link here holds it."""
        ...

    async def close(self, router_id: str, session: Session, reason: CloseReason) -> bool:
        """Tells the pod that it does not hold it any more."""
        ...

    async def send(self, router_id: str, sessions: Sequence[Session], message: Message) -> int:
        """Gives the message to the links of these sessions' pods."""
        ...

    async def drain(self, router_id: str, pod_id: str, reason: str) -> bool:
        """Asks the pod to let its sessions go."""
        ...


class PodUnknown(NotFound):
    """The pod has no link."""

    reason = Reason.REASON_POD_UNKNOWN


class Sessions:
    """Finding, closing, and sending to sessions, wherever their pods have their links."""

    def __init__(
        self,
        table: Table,
        leases: LeaseTable,
        to_pod: ToPod,
        *,
        closed: Callable[[Session, CloseReason], None],
        router_id: str,
    ) -> None:
        self._table = table
        self._leases = leases
        self._to_pod = to_pod
        self._closed = closed
        self._router_id = router_id

    async def get(self, key: SessionKey) -> tuple[Session, LinkedPod]:
        """The session and its pod. Raises SessionUnknown, TableUnavailable."""
        session = await self._table.find(key)
        if session is not None:
            pod = _living(await self._leases.linked(session.life.pod_id)).get(session.life)
            if pod is not None:
                return session, pod
        raise _unknown(key)

    async def page(self, wanted: Wanted, after: str, size: int) -> tuple[list[Session], str]:
        """The next sessions behind an id whose pods have leases, and the id that the page ends with if there are more."""
        living = _living(await self._leases.linked())
        found: list[Session] = []
        while True:
            scanned, after = await self._table.scan(wanted, after, size + 1)
            found += [one for one in scanned if wanted.fits(one) and one.life in living]
            if len(found) > size:
                return found[:size], found[size - 1].key.session_id
            if not after:
                return found, ""

    async def count(self, wanted: Wanted) -> int:
        """How many there are."""
        living = _living(await self._leases.linked())
        count, after = 0, ""
        while True:
            scanned, after = await self._table.scan(wanted, after, SCANNED_AT_ONCE)
            count += sum(1 for one in scanned if wanted.fits(one) and one.life in living)
            if not after:
                return count

    async def close(self, key: SessionKey, reason: CloseReason, fence: int | None) -> bool:
        """Closes it; True if its pod's link was told. Raises SessionUnknown, SessionLost, TableUnavailable."""
        for _ in range(_LOOKS_MAX):
            session, router_id = await self._located(key)
            if fence is not None and fence != session.fence:
                raise lost(key)
            if await self._removed(session):
                self._closed(session, reason)
                return await self._told(self._to_pod.close(router_id, session, reason), otherwise=False)
        raise _unknown(key)

    async def send(self, key: SessionKey, message: Message) -> Sent:
        """Gives the message to the session's pod. Raises SessionUnknown, TableUnavailable."""
        session, router_id = await self._located(key)
        return Sent(1, await self._told(self._to_pod.send(router_id, [session], message), otherwise=0))

    async def send_all(self, wanted: Wanted, message: Message) -> Sent:
        """The same for all sessions of a user with an agent. Raises TableUnavailable: then nothing was sent."""
        pods = _living(await self._leases.linked())
        sessions, after = await self.page(wanted, "", SCANNED_AT_ONCE)
        while after:
            more, after = await self.page(wanted, after, SCANNED_AT_ONCE)
            sessions += more
        by_router: dict[str, list[Session]] = {}
        for session in sessions:
            if session.life in pods:
                by_router.setdefault(self._router_of(session, pods[session.life]), []).append(session)
        sending = (self._told(self._to_pod.send(*one, message), otherwise=0) for one in by_router.items())
        return Sent(len(sessions), sum(await asyncio.gather(*sending)))

    async def drain(self, pod_id: str, reason: str) -> bool:
        """Asks a pod to let its sessions go; True if its link was told. Raises PodUnknown, TableUnavailable."""
        if await self._to_pod.drain(self._router_id, pod_id, reason):
            return True
        for pod in await self._leases.linked(pod_id):
            return await self._told(self._to_pod.drain(pod.router_id, pod_id, reason), otherwise=False)
        raise PodUnknown(f"pod {pod_id!r} has neither a link nor a lease", pod_id=pod_id)

    async def pods(self) -> list[LinkedPod]:
        """The pods that have a lease, by id."""
        return sorted(await self._leases.linked())

    async def _located(self, key: SessionKey) -> tuple[Session, str]:
        """The session, and the router that has its pod's link. Raises SessionUnknown, TableUnavailable."""
        try:
            session, pod = await self.get(key)
        except (TableUnavailable, SessionUnknown):
            here = self._to_pod.held(key)  # it need not be in the table yet, or any more
            if here is None:
                raise
            return here, self._router_id
        return session, self._router_of(session, pod)

    def _router_of(self, session: Session, pod: LinkedPod) -> str:
        return self._router_id if self._to_pod.has(session) else pod.router_id

    async def _removed(self, session: Session) -> bool:
        try:
            return await self._table.close(session, by_others=True) or self._to_pod.has(session)
        except TableUnavailable:
            if self._to_pod.has(session):  # its link is here, which removes it once Redis is back
                return True
            raise

    async def _told(self, telling: Awaitable[Value], *, otherwise: Value) -> Value:
        try:
            return await telling
        except (PeerUnavailable, TableUnavailable):  # what is lost on its way to the pod is said by the answer
            return otherwise


def _living(pods: Sequence[LinkedPod]) -> dict[PodLife, LinkedPod]:
    return {pod.life: pod for pod in pods}


def lost(key: SessionKey) -> SessionLost:
    """The refusal to who acts for a session under a fence that it is not held under."""
    said = f"session {key.session_id!r} is not held under this fence any more"
    return SessionLost(said, workspace_id=key.workspace_id, session_id=key.session_id)


def _unknown(key: SessionKey) -> SessionUnknown:
    said = f"nobody holds session {key.session_id!r}"
    return SessionUnknown(said, workspace_id=key.workspace_id, session_id=key.session_id)
