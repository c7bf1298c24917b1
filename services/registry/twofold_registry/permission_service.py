"""The gRPC face of permissions."""

from twofold.registry.v1 import permission_pb2 as pb
from twofold.registry.v1.permission_pb2_grpc import PermissionServiceServicer
from twofold_chassis.edge import Context
from twofold_registry.checks import Checks
from twofold_registry.permissions import Permissions, RouterWait
from twofold_registry.wire import checks as wire_checks
from twofold_registry.wire import forms
from twofold_registry.wire import permissions as wire


class PermissionService(PermissionServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, permissions: Permissions, checks: Checks, routers: RouterWait) -> None:
        self._permissions = permissions
        self._checks = checks
        self._routers = routers

    async def Grant(self, request: pb.GrantRequest, _: Context) -> pb.GrantResponse:
        order = wire.grant_order(request)
        attempt = wire.grant_attempt(request)
        answer = await self._permissions.grant(order.key.workspace_id, [order], attempt, wire.granted)
        return pb.GrantResponse.FromString(answer)

    async def BatchGrant(self, request: pb.BatchGrantRequest, _: Context) -> pb.BatchGrantResponse:
        orders = wire.grant_orders(request)
        attempt = wire.batch_grant_attempt(request)
        answer = await self._permissions.grant(request.workspace_id, orders, attempt, wire.all_granted)
        return pb.BatchGrantResponse.FromString(answer)

    async def Revoke(self, request: pb.RevokeRequest, _: Context) -> pb.RevokeResponse:
        order = wire.revoke_order(request)
        wait = wire.waits(request)
        attempt = wire.revoke_attempt(request)
        answer = await self._permissions.revoke(request.workspace_id, [order], attempt, wire.revoked, wait=wait)
        response = pb.RevokeResponse.FromString(answer)
        if wait:
            await self._until_all_know(response)
        return response

    async def BatchRevoke(self, request: pb.BatchRevokeRequest, _: Context) -> pb.BatchRevokeResponse:
        orders = wire.revoke_orders(request)
        wait = wire.waits(request)
        attempt = wire.batch_revoke_attempt(request)
        tell = wire.all_revoked(orders)
        answer = await self._permissions.revoke(request.workspace_id, orders, attempt, tell, wait=wait)
        response = pb.BatchRevokeResponse.FromString(answer)
        if wait:
            await self._until_all_know(response)
        return response

    async def Check(self, request: pb.CheckRequest, _: Context) -> pb.CheckResponse:
        question = wire_checks.question(request)
        return wire_checks.checked(await self._checks.ask(question, forms.least(request)))

    async def BatchCheck(self, request: pb.BatchCheckRequest, _: Context) -> pb.BatchCheckResponse:
        batch = wire_checks.batch(request)
        read = await self._checks.ask(batch.question, forms.least(request))
        return wire_checks.all_checked(batch, read)

    async def ExplainPermission(self, request: pb.ExplainPermissionRequest, _: Context) -> pb.ExplainPermissionResponse:
        key = wire_checks.explained_key(request)
        return wire_checks.explained(await self._checks.explain(key, forms.least(request)))

    async def ListGrants(self, request: pb.ListGrantsRequest, _: Context) -> pb.ListGrantsResponse:
        query = wire.list_query(request)
        after, size = wire.list_place(request, query)
        least = forms.least(request)
        return wire.listed(query, await self._permissions.list(query, after, size, least))

    async def ListUsableAgents(self, request: pb.ListUsableAgentsRequest, _: Context) -> pb.ListUsableAgentsResponse:
        user = wire_checks.viewer(request)
        after, size = wire_checks.list_place(request, user)
        least = forms.least(request)
        return wire_checks.usable_agents(user, await self._checks.usable_agents(user, after, size, least))

    async def ListAgentUsers(self, request: pb.ListAgentUsersRequest, _: Context) -> pb.ListAgentUsersResponse:
        agent = wire_checks.used(request)
        after, size = wire_checks.list_place(request, agent)
        least = forms.least(request)
        return wire_checks.agent_users(agent, await self._checks.users_of(agent, after, size, least))

    async def _until_all_know(self, answer: pb.RevokeResponse | pb.BatchRevokeResponse) -> None:
        """Waits also where nothing was there to revoke: it may have been revoked by somebody who did not wait."""
        wire.tell_of_routers(answer, await self._routers.until_all(wire.revoked_at(answer)))
