"""The gRPC face of permissions."""

from twofold.registry.v1 import permission_pb2 as pb
from twofold.registry.v1.permission_pb2_grpc import PermissionServiceServicer
from twofold_chassis.edge import Context
from twofold_registry.permissions import Permissions
from twofold_registry.wire import permissions as wire


class PermissionService(PermissionServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, permissions: Permissions) -> None:
        self._permissions = permissions

    async def Grant(self, request: pb.GrantRequest, _: Context) -> pb.GrantResponse:
        key = wire.granted_key(request)
        expires_at = wire.granted_until(request)
        answer = await self._permissions.grant(key, expires_at, wire.grant_attempt(request), wire.granted)
        return pb.GrantResponse.FromString(answer)

    async def Revoke(self, request: pb.RevokeRequest, _: Context) -> pb.RevokeResponse:
        key = wire.grant_key(request)
        answer = await self._permissions.revoke(key, wire.revoke_attempt(request), wire.revoked)
        return pb.RevokeResponse.FromString(answer)

    async def Check(self, request: pb.CheckRequest, _: Context) -> pb.CheckResponse:
        key = wire.grant_key(request)
        return wire.checked(await self._permissions.facts(key, wire.least_revision(request)))

    async def ListGrants(self, request: pb.ListGrantsRequest, _: Context) -> pb.ListGrantsResponse:
        query = wire.list_query(request)
        after, size = wire.list_place(request, query)
        return wire.listed(query, await self._permissions.list(query, after, size))
