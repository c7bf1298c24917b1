"""Twofold's limits in a process of its own like the library's: through gRPC with its client, and its counters alone."""

import os
from urllib.parse import urlsplit

from benchmarks.peers import worker
from twofold.client import Twofold
from twofold.router.v1 import limit_pb2, routing_pb2
from twofold_chassis import fields
from twofold_chassis.redis import RedisLink
from twofold_chassis.settings import RedisSettings
from twofold_router.limits import Operation, Outcome
from twofold_router.limits_redis import RedisCounters, RedisFilling
from twofold_router.permissions import PairKey
from twofold_router.terms import Limit, LimitKind

_WORKSPACE = "peer-limits"
_CELLS = 12
_LIMITS = (Limit(LimitKind.USER_HOUR_MESSAGES, 10**15),)


class _Peer:
    def __init__(self, twofold: Twofold, counters: RedisCounters) -> None:
        self._routing = twofold.routing
        self._counters = counters
        self._request = routing_pb2.ResolveRequest(workspace_id="limited-1", user_id="user", agent_id="agent")

    async def hit(self, _: str) -> None:
        answer = await self._routing.Resolve(self._request)
        if answer.limits_source == limit_pb2.LIMITS_SOURCE_NONE:
            raise RuntimeError("not counted")

    async def count(self, name: str) -> None:
        operation = Operation(PairKey(_WORKSPACE, name, "agent"), fields.new_id())
        if (await self._counters.count(operation, _LIMITS)).outcome is not Outcome.COUNTED:
            raise RuntimeError("not counted")


async def opened(_: str, redis_url: str) -> _Peer:
    place = urlsplit(redis_url)
    settings = RedisSettings(
        host=place.hostname or "",
        port=place.port or 0,
        password=place.password,
        budget_ms=5000,
    )
    link = RedisLink(settings)
    counters = RedisCounters(link, cells=_CELLS)
    filling = RedisFilling(link, counters, cells=_CELLS)
    await filling.begin(_WORKSPACE, "peer")
    await filling.commit(_WORKSPACE, "peer")
    return _Peer(await Twofold(router=os.environ["PEER_ROUTER"]).__aenter__(), counters)


if __name__ == "__main__":
    worker.serve(opened, converses=False)
