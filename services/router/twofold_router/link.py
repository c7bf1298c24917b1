"""One pod's link: what it holds, and what waits to be told to it, which is bounded."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator

from twofold_chassis import call
from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import Overloaded, Refusal
from twofold_router.pods import Delivery, Fenced, HeldSession, Told
from twofold_router.sessions import Message, PodLife, Session, SessionKey

UNACKED_BYTES_MAX = 4 * 1024 * 1024
_TOLD_BYTES = 256
"""About what telling something costs besides a payload."""


class Link:
    """The state of a link; `bytes_max` may wait to be told, then the pod is too slow and is cut off."""

    def __init__(self, life: PodLife, address: str, *, bytes_max: int) -> None:
        self.life = life
        self.address = address
        self.heard_at = boot_s()
        self.good_until = float("-inf")
        """Until when nobody can have ended its lease, as far as Redis has told."""
        self.announced: dict[str, str] = {}
        """By workspace: the generation of its table that has all sessions of this link."""
        self.refreshed_at: dict[str, float] = {}
        self.compared_at: dict[str, float] = {}
        self.opening: set[SessionKey] = set()
        self.calls = 0
        """Its opens, touches and closes that are under way."""
        self.beats = 0
        self.tasks: set[asyncio.Task[None]] = set()
        """What is done for it just now."""
        self.mismatches = 0
        self.again: list[HeldSession] | None = None
        """What it has announced since it was asked for all its sessions again."""
        self.asked_about: frozenset[SessionKey] = frozenset()
        self._sessions: dict[str, dict[str, Session]] = {}
        self._count = 0
        self._bytes_max = bytes_max
        self._bytes = 0
        self._waiting: deque[tuple[Told, int]] = deque()
        self._woken = asyncio.Event()
        self._over: Refusal | None = None
        self._ended = False
        self._writing: asyncio.Task[object] | None = None
        self._delivered = 0
        self._unacked: deque[tuple[int, int]] = deque()
        self._unacked_bytes = 0

    # What it holds ---------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return self._count

    def get(self, key: SessionKey) -> Session | None:
        return self._sessions.get(key.workspace_id, {}).get(key.session_id)

    def holds(self, session: Session) -> bool:
        """Whether it holds it under this fence."""
        held = self.get(session.key)
        return held is not None and held.fence == session.fence

    def put(self, session: Session) -> None:
        sessions = self._sessions.setdefault(session.key.workspace_id, {})
        self._count += session.key.session_id not in sessions
        sessions[session.key.session_id] = session

    def drop(self, key: SessionKey) -> None:
        sessions = self._sessions.get(key.workspace_id, {})
        if sessions.pop(key.session_id, None) is not None:
            self._count -= 1
            if not sessions:
                del self._sessions[key.workspace_id]

    def sessions(self) -> Iterator[Session]:
        for sessions in list(self._sessions.values()):
            yield from list(sessions.values())

    def workspaces(self) -> list[str]:
        return list(self._sessions)

    def in_workspace(self, workspace_id: str) -> list[Session]:
        return list(self._sessions.get(workspace_id, {}).values())

    # What it is told -------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self._ended

    def tell(self, told: Told, size: int = 0) -> bool:
        """Tells it as soon as it listens; False if the link has ended, or ends because it does not listen."""
        if self._ended:
            return False
        size += _TOLD_BYTES
        if self._bytes + size > self._bytes_max:
            self.end(Overloaded("the pod does not take what it is told", retry_after_s=1.0))
            return False
        self._waiting.append((told, size))
        self._bytes += size
        self._woken.set()
        return True

    def deliver(self, key: SessionKey, message: Message) -> bool:
        """Gives it a message for a session's client; False if the link has ended, or ends: too much is not acknowledged."""
        size = len(message.payload)
        if self._unacked_bytes + size > UNACKED_BYTES_MAX:
            self.end(Overloaded("the pod does not acknowledge what was delivered", retry_after_s=1.0))
        if not self.tell(Delivery(self._delivered + 1, key, message), size):
            return False
        self._delivered += 1
        self._unacked.append((self._delivered, size))
        self._unacked_bytes += size
        return True

    def acked(self, delivery: int) -> None:
        """Everything up to this delivery has left the pod's hands."""
        while self._unacked and self._unacked[0][0] <= delivery:
            self._unacked_bytes -= self._unacked.popleft()[1]

    def fence(self, reason: str) -> None:
        """The pod's life is over: the link ends behind that."""
        self.tell(Fenced(reason))
        self.finish()

    def finish(self) -> None:
        """Ends the link behind what waits."""
        self._ended = True
        self._woken.set()

    def end(self, refusal: Refusal | None = None) -> None:
        """Ends the link, now: what waits is not told any more."""
        if not self._ended:
            self._ended, self._over = True, refusal
            self._waiting.clear()
            self._woken.set()
        if self._writing is not None and self._writing is not asyncio.current_task():  # to a pod that does not read
            self._writing.cancel()

    async def told(self) -> AsyncGenerator[Told, None]:
        """What the pod is told, until the link ends. Raises why it did, if that is to be told; Draining."""
        while True:
            while self._waiting:
                told, size = self._waiting.popleft()
                self._writing = asyncio.current_task()
                try:
                    yield told
                finally:
                    self._writing = None
                self._bytes -= size
            if self._over is not None:
                raise self._over
            if self._ended:
                return
            self._woken.clear()
            await call.unless_draining(self._woken.wait())
