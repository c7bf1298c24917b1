"""The leases of pods and the table of sessions, in Redis. A session is changed by one script, which compares and writes."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cachetools import LRUCache

from twofold_chassis import fields
from twofold_chassis.redis import RUN_ID, Argument, RedisLink, RedisNotAsked, RedisUnavailable, Reply, Script
from twofold_router import keys
from twofold_router.pods import Beat, Kept, News, Placed
from twofold_router.sessions import (
    Incarnation,
    LinkedPod,
    PodLife,
    Session,
    SessionHeld,
    SessionKey,
    SessionUnknown,
    TableUnavailable,
    TooManySessions,
    Wanted,
)

_LUA = "twofold_router.lua"
_NEWS, _OPEN, _ANNOUNCE, _TOUCH, _CLOSE, _FREE = (
    Script.load(_LUA, f"session_{name}") for name in ("news", "open", "announce", "touch", "close", "free")
)
_HELLO, _BEAT, _END = (Script.load(_LUA, f"pod_{name}") for name in ("hello", "beat", "end"))
_LINKED, _OVERDUE = (Script.load(_LUA, f"pods_{name}") for name in ("linked", "overdue"))

_GENERATIONS_MAX = 50_000
_CLOSED_KEPT_MS = 3600 * 1000
_FREE_KEPT_MS = 60_000
_PAGE = 500
_FIELDS = ("user", "agent", "pod", "life", "fence", "opened", "touched", "free")


class _Row(NamedTuple):
    """A session as it stands there; it is nobody's while it may be taken over."""

    session: Session
    is_held: bool


class RedisLeases:
    """The leases of pods. A pod whose lease could not be extended for `lease_s` is overdue."""

    def __init__(self, link: RedisLink, *, router_id: str, lease_s: float) -> None:
        self._link = link
        self._router_id = router_id
        self._lease_ms = int(lease_s * 1000)

    async def hello(self, life: PodLife, address: str) -> bool:
        names = [keys.pod_leases(), keys.pods_ended()]
        told = (*_named(life), self._router_id, address, self._lease_ms, keys.SESSION_TTL_MS, _now_ms())
        return bool(await self._run(_HELLO, names, (RUN_ID, *told)))

    async def beat(self, life: PodLife) -> Beat:
        told = (*_named(life), self._router_id, self._lease_ms, keys.SESSION_TTL_MS, _now_ms())
        return Beat(_text(await self._run(_BEAT, [keys.pod_leases()], (RUN_ID, *told))).lower())

    async def serves(self, life: PodLife, workspace_id: str) -> None:
        name = keys.pod_workspaces(life.pod_id, *life.incarnation)
        with _table():
            await asyncio.gather(
                self._link.call("SADD", name, workspace_id), self._link.call("PEXPIRE", name, keys.SESSION_TTL_MS)
            )

    async def linked(self, pod_id: str | None = None) -> list[LinkedPod]:
        told = await self._run(_LINKED, [keys.pod_leases()], (RUN_ID, pod_id or "", _now_ms()))
        return [
            LinkedPod(_life(pod, epoch, number), _text(address), _text(router), int(left))
            for pod, epoch, number, router, address, left in _in_parts(told, 6)
        ]

    async def overdue(self, pod_id: str | None = None) -> list[PodLife]:
        # Every router looks ten times in a lease: in the third of one somebody would have, were Redis there.
        told = (RUN_ID, pod_id or "", self._lease_ms, self._lease_ms // 3, _now_ms())
        return [_life(*one) for one in _in_parts(await self._run(_OVERDUE, [keys.pod_leases()], told), 3)]

    async def end(self, life: PodLife) -> None:
        names = [keys.pod_leases(), keys.pods_ended()]
        await self._run(_END, names, (*_named(life), _now_ms(), keys.SESSION_TTL_MS))

    async def ended(self) -> list[PodLife]:
        with _table():
            told: Reply = await self._link.call("HKEYS", keys.pods_ended())
        return [_life(*name.split(b"\t")) for name in told]

    async def workspaces(self, life: PodLife) -> list[str]:
        with _table():
            told: Reply = await self._link.call("SMEMBERS", keys.pod_workspaces(life.pod_id, *life.incarnation))
        return sorted(map(_text, told))

    async def forget(self, life: PodLife) -> None:
        with _table():
            await self._link.call("DEL", keys.pod_workspaces(life.pod_id, *life.incarnation))
            await self._link.call("HDEL", keys.pods_ended(), "\t".join(map(str, _named(life))))

    async def _run(self, script: Script, names: Sequence[str], arguments: Sequence[Argument]) -> Reply:
        with _table():
            return await self._link.run(script, names, arguments)


class RedisTable:
    """The table of sessions. A dead pod's may be taken over after `lease_s`, those that were given up at once."""

    def __init__(self, link: RedisLink, *, lease_s: float) -> None:
        self._link = link
        self._lease_ms = int(lease_s * 1000)
        self._generations: LRUCache[str, str] = LRUCache(_GENERATIONS_MAX)

    # For everybody ---------------------------------------------------------------------------------------------

    async def find(self, key: SessionKey) -> Session | None:
        generation = await self._generation(key.workspace_id)
        row = await self._row(generation, key)
        return row.session if row is not None and row.is_held else None

    async def scan(self, wanted: Wanted, after: str, count: int) -> tuple[list[Session], str]:
        generation = await self._generation(wanted.workspace_id)
        return await self._scanned(generation, wanted.workspace_id, _index(generation, wanted), after, count)

    async def close(self, session: Session, *, by_others: bool) -> bool:
        kept_ms = _CLOSED_KEPT_MS if by_others else 0
        return await self._changed(_CLOSE, session, (kept_ms, _now_ms())) == "CLOSED"

    # For pods --------------------------------------------------------------------------------------------------

    async def news(self, workspace_id: str, since_ms: int) -> News:
        names = [keys.session_generation(workspace_id), keys.sessions_closed(workspace_id)]
        arguments = (RUN_ID, fields.new_id().replace("-", ""), keys.SESSION_TTL_MS, since_ms, _now_ms())
        generation, now_ms, *closed = await self._run(_NEWS, names, arguments)
        self._generations[workspace_id] = _text(generation)
        pairs = (_text(one).rpartition("\n") for one in closed)
        return News(_text(generation), int(now_ms), [(session_id, int(fence)) for session_id, _, fence in pairs])

    async def open(self, generation: str, session: Session, *, take_over: bool, per_user_max: int) -> Placed:
        arguments = (
            *(RUN_ID, generation, session.key.session_id, session.user_id, session.agent_id, *_holder(session)),
            *(session.fence, session.opened_ms, int(take_over), per_user_max, keys.SESSION_TTL_MS, _now_ms()),
        )
        told, *rest = await self._run(_OPEN, _names(generation, session), arguments)
        session_id = session.key.session_id
        match told:
            case b"OPENED":
                return Placed(int(rest[0]), int(rest[1]))
            case b"HELD":
                held = f"another pod holds session {session_id!r}"
                return Placed(refusal=SessionHeld(held, retry_after_s=self._lease_ms / 1000, session_id=session_id))
            case b"UNKNOWN":
                return Placed(refusal=SessionUnknown(f"nobody knows session {session_id!r}", session_id=session_id))
            case b"TOO_MANY":
                return Placed(refusal=TooManySessions(f"a user may have {per_user_max} sessions", user_id=session.user_id))
        return Placed(anew=True)

    async def announce(self, generation: str, session: Session) -> Kept:
        arguments = (
            *(RUN_ID, generation, session.key.session_id, session.user_id, session.agent_id, *_holder(session)),
            *(session.fence, session.opened_ms, session.touched_ms, keys.SESSION_TTL_MS),
        )
        return Kept(_text(await self._run(_ANNOUNCE, _names(generation, session), arguments)).lower())

    async def touch(self, generation: str, session: Session, now_ms: int) -> Kept:
        arguments = (RUN_ID, generation, *_holder(session), session.fence, now_ms)
        return Kept(_text(await self._run(_TOUCH, _names(generation, session)[:2], arguments)).lower())

    async def give_up(self, session: Session) -> bool:
        return await self._changed(_FREE, session, (0, _FREE_KEPT_MS, _now_ms())) == "FREED"

    async def end(self, session: Session) -> bool:
        # Until a lease after the verdict its pod may hold it still, by the registry's word before that (links.py).
        return await self._changed(_FREE, session, (self._lease_ms, _FREE_KEPT_MS, _now_ms())) == "FREED"

    async def ids(self, workspace_id: str, pod_id: str, after: str) -> tuple[list[str], str]:
        index = keys.pod_sessions(workspace_id, await self._generation(workspace_id), pod_id)
        return await self._ids(index, after, _PAGE)

    async def of_life(self, workspace_id: str, life: PodLife, after: str) -> tuple[list[Session], str]:
        generation = await self._generation(workspace_id)
        index = keys.pod_sessions(workspace_id, generation, life.pod_id)
        sessions, after = await self._scanned(generation, workspace_id, index, after, _PAGE)
        return [session for session in sessions if session.life == life], after

    # -----------------------------------------------------------------------------------------------------------

    async def _generation(self, workspace_id: str) -> str:
        """The generation there is now."""
        return (await self.news(workspace_id, _now_ms() + _CLOSED_KEPT_MS)).generation

    async def _known(self, workspace_id: str) -> str:
        """The generation, as it was last heard: scripts compare it."""
        return self._generations.get(workspace_id) or await self._generation(workspace_id)

    async def _changed(self, script: Script, session: Session, arguments: Sequence[Argument]) -> str:
        generation = await self._known(session.key.workspace_id)
        told = (RUN_ID, generation, session.key.session_id, *_holder(session), session.fence, *arguments)
        outcome = _text(await self._run(script, _names(generation, session), told))
        if outcome == "ANEW":
            self._generations.pop(session.key.workspace_id, None)
        return outcome

    async def _scanned(
        self, generation: str, workspace_id: str, index: str, after: str, count: int
    ) -> tuple[list[Session], str]:
        ids, after = await self._ids(index, after, count)
        rows = await asyncio.gather(*(self._row(generation, SessionKey(workspace_id, one)) for one in ids))
        return [row.session for row in rows if row is not None and row.is_held], after

    async def _ids(self, index: str, after: str, count: int) -> tuple[list[str], str]:
        first = f"({after}" if after else "-"
        with _table():
            told: Reply = await self._link.call("ZRANGEBYLEX", index, first, "+", "LIMIT", 0, count)
        ids = [_text(one) for one in told]
        return ids, ids[-1] if len(ids) == count else ""

    async def _row(self, generation: str, key: SessionKey) -> _Row | None:
        with _table():
            told: Reply = await self._link.call(
                "HMGET", keys.session(key.workspace_id, generation, key.session_id), *_FIELDS
            )
        if told[0] is None:
            return None
        user, agent, pod, life, fence, opened, touched, free = told
        holder = _life(pod, *life.split(b"."))
        session = Session(key, _text(user), _text(agent), holder, int(fence), int(opened), int(touched))
        return _Row(session, free is None)

    async def _run(self, script: Script, names: Sequence[str], arguments: Sequence[Argument]) -> Reply:
        with _table():
            return await self._link.run(script, names, arguments)


def _index(generation: str, wanted: Wanted) -> str:
    """The shortest list that has all that are wanted."""
    workspace_id = wanted.workspace_id
    if wanted.user_id is not None:
        return keys.user_sessions(workspace_id, generation, wanted.user_id)
    if wanted.pod_id is not None:
        return keys.pod_sessions(workspace_id, generation, wanted.pod_id)
    if wanted.agent_id is not None:
        return keys.agent_sessions(workspace_id, generation, wanted.agent_id)
    return keys.all_sessions(workspace_id, generation)


def _names(generation: str, session: Session) -> list[str]:
    """All keys of a session, in the order in which every script takes them."""
    workspace_id, session_id = session.key
    return [
        keys.session_generation(workspace_id),
        keys.session(workspace_id, generation, session_id),
        keys.all_sessions(workspace_id, generation),
        keys.user_sessions(workspace_id, generation, session.user_id),
        keys.agent_sessions(workspace_id, generation, session.agent_id),
        keys.pod_sessions(workspace_id, generation, session.life.pod_id),
        keys.sessions_closed(workspace_id),
    ]


def _holder(session: Session) -> tuple[str, str]:
    epoch, number = session.life.incarnation
    return session.life.pod_id, f"{epoch}.{number}"


def _named(life: PodLife) -> tuple[str, int, int]:
    return life.pod_id, *life.incarnation


def _life(pod: bytes, epoch: bytes, number: bytes) -> PodLife:
    return PodLife(_text(pod), Incarnation(int(epoch), int(number)))


def _in_parts(told: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    return (told[begin : begin + size] for begin in range(0, len(told), size))


def _text(value: bytes) -> str:
    return value.decode()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextlib.contextmanager
def _table() -> Iterator[None]:
    try:
        yield
    except RedisUnavailable as error:
        outcome = "NOT_STORED" if isinstance(error, RedisNotAsked) else "UNKNOWN"
        raise TableUnavailable("the table of sessions does not answer", retry_after_s=1.0, outcome=outcome) from None
