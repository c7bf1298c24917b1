"""Pods: what they and a router say to each other on a link, their leases, and what their sweeper does about the dead.

A pod holds its sessions while its lease runs, and is dead once the registry says so, for ever. Redis keeps the leases, and
is not trusted with the verdict: it forgets.
"""

from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from typing import NamedTuple, Protocol

import structlog

from twofold_chassis.refusals import FailedPrecondition, InvalidArgument, Reason, Refusal, ResourceExhausted
from twofold_chassis.revisions import Revision
from twofold_router.sessions import (
    CloseReason,
    Incarnation,
    LeaseTable,
    Message,
    PodLife,
    Session,
    SessionKey,
    Table,
)

LEASE_ENDED = "lease ended"


class PodFenced(FailedPrecondition):
    """This life of the pod is over."""

    reason = Reason.REASON_POD_FENCED


class TooManyLinks(ResourceExhausted):
    """As many pods have links to this router as may."""

    reason = Reason.REASON_TOO_MANY


# What a pod says --------------------------------------------------------------------------------------------------------


class Hello(NamedTuple):
    """Who has the link. Without an incarnation it begins a new life."""

    pod_id: str
    incarnation: Incarnation | None
    address: str
    session_count: int
    request_id: str


class HeldSession(NamedTuple):
    """A session as its pod knows it."""

    key: SessionKey
    user_id: str
    agent_id: str
    fence: int
    opened_ms: int


class Announce(NamedTuple):
    """Sessions that the pod holds."""

    sessions: Sequence[HeldSession]


class Heartbeat(NamedTuple):
    """The pod is alive, and holds so many sessions."""

    nonce: int
    session_count: int


class Open(NamedTuple):
    """The pod wants to hold a session."""

    call_id: int
    key: SessionKey
    user_id: str
    agent_id: str
    take_over: bool
    least: Revision | None


class Touch(NamedTuple):
    """A session is in use."""

    call_id: int
    key: SessionKey
    fence: int


class Close(NamedTuple):
    """The pod holds a session no longer."""

    call_id: int
    key: SessionKey
    fence: int
    reason: CloseReason
    give_up: bool


class Wrong(NamedTuple):
    """An open, touch or close that breaks the rules of its fields."""

    call_id: int
    refusal: InvalidArgument


class Ack(NamedTuple):
    """Deliveries up to this one have left the pod's hands."""

    delivery: int


class Leave(NamedTuple):
    """The pod ends."""


Said = Announce | Heartbeat | Open | Touch | Close | Wrong | Ack | Leave


# What a router says -----------------------------------------------------------------------------------------------------


class Welcome(NamedTuple):
    """The link stands."""

    router_id: str
    incarnation: Incarnation
    heartbeat_s: float
    lease_s: float
    sessions_max: int


class Alive(NamedTuple):
    """A heartbeat was good."""

    nonce: int


class Opened(NamedTuple):
    """The pod holds a session, if it hears of it in time. `listed`: it is in the table."""

    call_id: int
    fence: int
    opened_ms: int
    valid_s: float
    listed: bool


class Done(NamedTuple):
    """A touch or a close was done."""

    call_id: int


class Refused(NamedTuple):
    """An open, touch or close changed nothing."""

    call_id: int
    refusal: Refusal


class Delivery(NamedTuple):
    """A message for a session's client."""

    number: int
    key: SessionKey
    message: Message


class Closed(NamedTuple):
    """A session that the pod holds no longer under this fence."""

    key: SessionKey
    fence: int
    reason: CloseReason


class Drain(NamedTuple):
    """It is asked to let its sessions go."""

    reason: str


class Reannounce(NamedTuple):
    """It is asked for all its sessions."""


class Fenced(NamedTuple):
    """This life of the pod is over."""

    reason: str


Told = Welcome | Alive | Opened | Done | Refused | Delivery | Closed | Drain | Reannounce | Fenced


# Who keeps what ---------------------------------------------------------------------------------------------------------


class Beat(Enum):
    """What became of a lease that was to be extended."""

    GOOD = "good"
    MISSING = "missing"
    """The table does not know the pod: it has lost its content, or the lease was ended."""
    FENCED = "fenced"
    """The pod has begun another life."""
    MOVED = "moved"
    """Another router has the pod's link."""


class PodState(Enum):
    """The registry's word on a life of a pod."""

    LIVE = "live"
    DEAD = "dead"
    UNKNOWN = "unknown"


class Kept(Enum):
    """What became of a session that was announced."""

    KEPT = "kept"
    LOST = "lost"
    """Somebody else holds it under a higher fence, or has closed it."""
    ANEW = "anew"
    """The table of the workspace began anew: everything is to be announced in the new one."""


class Placed(NamedTuple):
    """What became of a session that was to be opened: its fence and when it was opened first, or why not."""

    fence: int = 0
    opened_ms: int = 0
    refusal: Refusal | None = None
    anew: bool = False


class News(NamedTuple):
    """The generation of a workspace's table, the time there, and which sessions others have closed since a time."""

    generation: str
    now_ms: int
    closed: Sequence[tuple[str, int]]


class Registrar(Protocol):
    """The registry's keeper of pods. Every method raises PeerUnavailable."""

    async def register(self, pod_id: str, address: str, request_id: str) -> PodLife:
        """Begins a new life of the pod; the one before is dead."""
        ...

    async def states(self, lives: Sequence[PodLife]) -> list[PodState]:
        """What is known of each."""
        ...

    async def mark_dead(self, life: PodLife, reason: str) -> None:
        """It is dead from now on, for ever."""
        ...


class Leases(LeaseTable, Protocol):
    """The leases of pods, with what their keepers do. Every method raises TableUnavailable."""

    async def hello(self, life: PodLife, address: str) -> bool:
        """The pod has its link here from now on, and a lease; False if it has begun another life since."""
        ...

    async def beat(self, life: PodLife) -> Beat:
        """Extends the lease."""
        ...

    async def serves(self, life: PodLife, workspace_id: str) -> None:
        """Remembers that the pod holds sessions of a workspace."""
        ...

    async def overdue(self, pod_id: str | None = None) -> list[PodLife]:
        """Whose lease has run out, of all or of this one; nobody's if the table was lost, or was not seen for a while."""
        ...

    async def end(self, life: PodLife) -> None:
        """The life has ended: it has no lease, and what it held is to be cleared up."""
        ...

    async def ended(self) -> list[PodLife]:
        """Who has ended and was not cleared up after yet."""
        ...

    async def workspaces(self, life: PodLife) -> list[str]:
        """The workspaces of the sessions it holds, or held."""
        ...

    async def forget(self, life: PodLife) -> None:
        """It was cleared up after."""
        ...


class PodTable(Table, Protocol):
    """The table of sessions, as pods change it. Every method raises TableUnavailable."""

    async def news(self, workspace_id: str, since_ms: int) -> News:
        """The generation of a workspace's table, which begins with this if Redis was lost."""
        ...

    async def open(self, generation: str, session: Session, *, take_over: bool, per_user_max: int) -> Placed:
        """Puts a new session under its fence into the table, or takes one over under a higher one."""
        ...

    async def announce(self, generation: str, session: Session) -> Kept:
        """Puts a session that is held into the table, unless it is held under a higher fence or was closed."""
        ...

    async def touch(self, generation: str, session: Session, now_ms: int) -> Kept:
        """Notes that it is in use. `generation`: of the table that it was put into: what it is not in has not lost it."""
        ...

    async def give_up(self, session: Session) -> bool:
        """It may be taken over from now on; False if it is not held under this fence any more."""
        ...

    async def end(self, session: Session) -> bool:
        """Its holder is dead: it may be taken over, in a lease; False if it is not held by that life any more."""
        ...

    async def ids(self, workspace_id: str, pod_id: str, after: str) -> tuple[list[str], str]:
        """The next ids behind one of what a pod holds in any of its lives, and the one that the next ones stand behind."""
        ...

    async def of_life(self, workspace_id: str, life: PodLife, after: str) -> tuple[list[Session], str]:
        """The next sessions behind an id that a life of a pod holds, and the id that the next ones stand behind."""
        ...


class Sweeper:
    """Finds pods whose lease has run out, has the registry say that they are dead, and then clears up after them.

    In this order: who has lost Redis would else take a pod that comes back for one that never was away.
    """

    def __init__(self, leases: Leases, table: PodTable, registrar: Registrar, closed: "Closes", died: "Counts") -> None:
        self._leases = leases
        self._table = table
        self._registrar = registrar
        self._closed = closed
        self._died = died
        self._logger = structlog.get_logger("twofold.pods")

    async def sweep(self) -> None:
        """Once. Raises TableUnavailable, PeerUnavailable: what was not done is done the next time, by whichever router."""
        for life in await self._leases.overdue():
            # Looked at again: the heartbeat may have come while others were cleared up after.
            if life in await self._leases.overdue(life.pod_id):
                await self._mark_dead(life)
                await self._leases.end(life)
                self._died()
                self._logger.warning("a pod is dead", pod_id=life.pod_id, incarnation=life.incarnation.number)
        for life in await self._leases.ended():
            await self._clear_up(life)

    async def _clear_up(self, life: PodLife) -> None:
        # A pod that registered anew is dead in its former life, one that has left or is not known any more may not be yet.
        await self._mark_dead(life)
        for workspace_id in await self._leases.workspaces(life):
            after = ""
            while True:
                sessions, after = await self._table.of_life(workspace_id, life, after)
                for session in sessions:
                    if await self._table.end(session):
                        self._closed(session, CloseReason.POD_DEAD)
                if not after:
                    break
        await self._leases.forget(life)

    async def _mark_dead(self, life: PodLife) -> None:
        with suppress(InvalidArgument):  # the registry never gave that life to anybody: it will not say that it is alive
            await self._registrar.mark_dead(life, LEASE_ENDED)


class Closes(Protocol):
    """Hears that a session was closed."""

    def __call__(self, session: Session, reason: CloseReason) -> None: ...


class Counts(Protocol):
    """Counts one more."""

    def __call__(self) -> None: ...
