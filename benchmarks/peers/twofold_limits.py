"""Twofold's limits through gRPC, with its Python client, in a process of its own like the library's."""

import os

from benchmarks.peers import worker
from twofold.client import Twofold
from twofold.router.v1 import limit_pb2, routing_pb2


class _Peer:
    def __init__(self, twofold: Twofold) -> None:
        self._routing = twofold.routing
        self._request = routing_pb2.ResolveRequest(workspace_id="limited-1", user_id="user", agent_id="agent")

    async def hit(self, _: str) -> None:
        answer = await self._routing.Resolve(self._request)
        if answer.limits_source != limit_pb2.LIMITS_SOURCE_COUNTED:
            raise RuntimeError("not counted")


async def opened(_: str, __: str) -> _Peer:
    return _Peer(await Twofold(router=os.environ["PEER_ROUTER"]).__aenter__())


if __name__ == "__main__":
    worker.serve(opened, converses=False)
