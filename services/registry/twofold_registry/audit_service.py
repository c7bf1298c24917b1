"""The gRPC face of the audit trail."""

from twofold.registry.v1 import audit_pb2 as pb
from twofold.registry.v1.audit_pb2_grpc import AuditServiceServicer
from twofold_chassis.edge import Context
from twofold_registry.audit import Audit
from twofold_registry.wire import audit as wire


class AuditService(AuditServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, _: Context) -> pb.ListAuditEntriesResponse:
        query = wire.list_query(request)
        before, size = wire.list_place(request, query)
        return wire.listed(query, await self._audit.list(query, before, size))
