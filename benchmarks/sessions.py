"""What is measured of sessions: the memory of one that nothing happens to, in the router and in Redis."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

from benchmarks import crowds
from benchmarks.comparing import Operation
from benchmarks.places import Place
from benchmarks.rows import Figure, Json, resident_mib
from twofold.pod import HeldSession, PodLink, SessionRefused
from twofold.router.v1 import routing_pb2

SESSIONS = 10_000
PODS = 10
_USERS = 500
_AT_ONCE = 8
_IDLE_S = 10
_TRIES = 20
_WORKSPACE = "sessions"


async def _idle(place: Place) -> Figure:
    """Over a few pods' links, which are there before."""
    users = await crowds.make(place, _WORKSPACE, _USERS, ["agent"])
    pairs = [routing_pb2.UserAgent(user_id=user_id, agent_id="agent") for user_id in users]
    await place.twofold.routing.BatchResolve(
        routing_pb2.BatchResolveRequest(workspace_id=_WORKSPACE, pairs=pairs), timeout=60
    )
    async with AsyncExitStack() as undo:
        pods = [await undo.enter_async_context(_pod(place, number)) for number in range(PODS)]
        for pod in pods:
            await pod.linked()
            await _opened(pod, users[0])
        before, before_redis = resident_mib(place.router.pid), await place.redis_used()
        waiting = iter([(pods[number % PODS], users[number % _USERS]) for number in range(SESSIONS)])
        began = time.perf_counter()
        await asyncio.gather(*(_open(waiting) for _ in range(_AT_ONCE)))
        took_s = time.perf_counter() - began
        await asyncio.sleep(_IDLE_S)  # their history goes to the registry, and pods send heartbeats
        held = sum(len(pod.sessions) for pod in pods if pod.serves)
        grown = resident_mib(place.router.pid) - before
        grown_redis = (await place.redis_used())[0] - before_redis[0]
    if held != SESSIONS + PODS:
        raise RuntimeError(f"P12-sessions: {held} sessions are held, and {SESSIONS + PODS} were opened")
    values: Json = {
        "router_bytes_each": round(grown * 2**20 / SESSIONS),
        "router_mib_in_all": round(grown, 1),
        "redis_bytes_each": round(grown_redis / SESSIONS),
        "redis_mib_in_all": round(grown_redis / 2**20, 1),
        "pods": PODS,
        "opened_per_s": round(SESSIONS / took_s),
    }
    note = (
        f"each opened through its pod's link, with its indexes in Redis; bounded: ROUTER__POD_SESSIONS_MAX of a pod, "
        f"ROUTER__POD_LINKS_MAX pods, ROUTER__USER_SESSIONS_MAX of a user; opened with {_AT_ONCE} under way at a time"
    )
    return Figure("P12-sessions", f"memory of an idle session, {SESSIONS:,} of them", values, note)


async def _open(waiting: Iterator[tuple[PodLink, str]]) -> None:
    for pod, user_id in waiting:
        await _opened(pod, user_id)


async def _opened(pod: PodLink, user_id: str) -> None:
    """Opens one; on a busy machine a router may ask to be asked again."""
    for _ in range(_TRIES):
        try:
            await pod.open(_WORKSPACE, user_id=user_id, agent_id="agent")
        except SessionRefused as refused:
            why = refused
            await asyncio.sleep(refused.retry_after_s or 0)
        else:
            return
    raise RuntimeError(f"P12-sessions: a session was not opened: {why}")


def _pod(place: Place, number: int) -> PodLink:
    async def told(*_: HeldSession | str | bytes) -> None:
        """Nothing is told of them."""

    return PodLink([place.router.target], pod_id=f"bench-{number}", delivered=told, closed=told)


OPERATIONS = (Operation("P12-sessions", _idle),)
