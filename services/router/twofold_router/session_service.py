"""The gRPC face of sessions."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from twofold.router.v1 import session_pb2 as pb
from twofold.router.v1.session_pb2_grpc import SessionServiceServicer
from twofold_chassis import call
from twofold_chassis.edge import Context
from twofold_router import wire_sessions as wire
from twofold_router.links import Links
from twofold_router.sessions import SessionKey, Sessions


class SessionService(SessionServiceServicer):
    """SessionService of the contract."""

    def __init__(self, sessions: Sessions, links: Links) -> None:
        self._sessions = sessions
        self._links = links

    async def PodLink(
        self, requests: AsyncIterator[pb.PodLinkRequest], _: Context
    ) -> AsyncGenerator[pb.PodLinkResponse, None]:
        hello = await call.unless_draining(wire.hello(requests))
        async with aclosing(self._links.serve(hello, wire.said(requests))) as told:
            async for one in told:
                yield wire.told(one)

    async def GetSession(self, request: pb.GetSessionRequest, _: Context) -> pb.GetSessionResponse:
        session, pod = await self._sessions.get(wire.session_key(request))
        return wire.get_response(session, pod)

    async def ListSessions(self, request: pb.ListSessionsRequest, _: Context) -> pb.ListSessionsResponse:
        wanted, after, size = wire.page(request)
        return wire.list_response(wanted, *await self._sessions.page(wanted, after, size))

    async def CountSessions(self, request: pb.CountSessionsRequest, _: Context) -> pb.CountSessionsResponse:
        return pb.CountSessionsResponse(count=await self._sessions.count(wire.wanted(request)))

    async def CloseSession(self, request: pb.CloseSessionRequest, _: Context) -> pb.CloseSessionResponse:
        return pb.CloseSessionResponse(told=await self._sessions.close(*wire.closing(request)))

    async def SendToSession(self, request: pb.SendToSessionRequest, _: Context) -> pb.SendToSessionResponse:
        to, message = wire.message(request)
        if isinstance(to, SessionKey):
            return wire.send_response(await self._sessions.send(to, message))
        return wire.send_response(await self._sessions.send_all(to, message))

    async def DrainPod(self, request: pb.DrainPodRequest, _: Context) -> pb.DrainPodResponse:
        return pb.DrainPodResponse(told=await self._sessions.drain(*wire.drain(request)))

    async def ListLinkedPods(self, request: pb.ListLinkedPodsRequest, _: Context) -> pb.ListLinkedPodsResponse:
        after, size = wire.pods_page(request)
        return wire.pods_response(await self._sessions.pods(), after, size)
