"""The gRPC face of the history of sessions."""

from datetime import UTC, datetime

from twofold.registry.v1 import session_pb2 as pb
from twofold.registry.v1.session_pb2_grpc import SessionHistoryServiceServicer
from twofold_chassis.edge import Context
from twofold_registry.sessions import Sessions
from twofold_registry.wire import sessions as wire


class SessionHistoryService(SessionHistoryServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def RecordSessions(self, request: pb.RecordSessionsRequest, _: Context) -> pb.RecordSessionsResponse:
        workspace_id = wire.workspace_id(request)
        told = wire.told(request, datetime.now(UTC))
        return wire.recorded(await self._sessions.record(workspace_id, told))

    async def ListSessions(self, request: pb.ListSessionsRequest, _: Context) -> pb.ListSessionsResponse:
        query = wire.list_query(request)
        before, size = wire.list_place(request, query)
        page = await self._sessions.list(query, before, size, wire.least_revision(request))
        return wire.listed(query, page)
