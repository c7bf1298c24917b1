"""The gRPC face of the audit trail."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from twofold.registry.v1 import audit_pb2 as pb
from twofold.registry.v1.audit_pb2_grpc import AuditServiceServicer
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_registry.audit import Audit
from twofold_registry.audit_chains import Chains
from twofold_registry.audit_keys import AuditKeys
from twofold_registry.wire import audit as wire


class AuditService(AuditServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, audit: Audit, chains: Chains, keys: AuditKeys) -> None:
        self._audit = audit
        self._chains = chains
        self._keys = keys

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, _: Context) -> pb.ListAuditEntriesResponse:
        query = wire.list_query(request)
        behind, size = wire.list_place(request, query)
        return wire.listed(query, await self._audit.list(query, behind, size, wire.least(request)))

    async def VerifyAudit(self, request: pb.VerifyAuditRequest, _: Context) -> AsyncIterator[pb.VerifyAuditResponse]:
        workspace_id = fields.identifier(request.workspace_id, "workspace_id")
        after = wire.verified_before(request)
        signed = wire.signed_head(request, after)
        async with aclosing(self._chains.verify(workspace_id, after, signed, self._keys)) as walk:
            async for told in walk:
                yield wire.walked(told)

    async def ExportAudit(self, request: pb.ExportAuditRequest, _: Context) -> AsyncIterator[pb.ExportAuditResponse]:
        workspace_id, after = wire.export_place(request)
        async with aclosing(self._chains.export(workspace_id, after)) as batches:
            async for entries in batches:
                for message in wire.exported(workspace_id, entries):
                    yield message

    async def ExportAuditHead(self, request: pb.ExportAuditHeadRequest, _: Context) -> pb.ExportAuditHeadResponse:
        workspace_id = fields.identifier(request.workspace_id, "workspace_id")
        public_key = self._keys.public_key
        return wire.head_exported(self._keys.sign(await self._audit.head(workspace_id)), public_key)

    async def GetAuditKey(self, request: pb.GetAuditKeyRequest, _: Context) -> pb.GetAuditKeyResponse:
        return wire.key(self._keys.public_key)
