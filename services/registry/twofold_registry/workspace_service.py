"""The gRPC face of workspaces."""

from twofold.registry.v1 import workspace_pb2 as pb
from twofold.registry.v1.workspace_pb2_grpc import WorkspaceServiceServicer
from twofold_chassis.edge import Context
from twofold_registry.wire import forms
from twofold_registry.wire import workspaces as wire
from twofold_registry.workspaces import Workspaces


class WorkspaceService(WorkspaceServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    async def CreateWorkspace(self, request: pb.CreateWorkspaceRequest, _: Context) -> pb.CreateWorkspaceResponse:
        workspace, write = wire.new_workspace(request), wire.create_write(request)
        answer = await self._workspaces.create(workspace, write, wire.written(pb.CreateWorkspaceResponse))
        return pb.CreateWorkspaceResponse.FromString(answer)

    async def GetWorkspace(self, request: pb.GetWorkspaceRequest, _: Context) -> pb.GetWorkspaceResponse:
        key, look = wire.workspace_key(request), forms.look(request)
        return wire.got(await self._workspaces.get(key, look))

    async def BatchGetWorkspaces(self, request: pb.BatchGetWorkspacesRequest, _: Context) -> pb.BatchGetWorkspacesResponse:
        ids, look = forms.ids(request.workspace_ids, "workspace_ids"), forms.look(request)
        return wire.batch(ids, await self._workspaces.batch_get("", ids, look))

    async def ListWorkspaces(self, request: pb.ListWorkspacesRequest, _: Context) -> pb.ListWorkspacesResponse:
        listing = wire.listing(request)
        return wire.listed(listing, await self._workspaces.list(listing))

    async def UpdateWorkspace(self, request: pb.UpdateWorkspaceRequest, _: Context) -> pb.UpdateWorkspaceResponse:
        key, write = wire.updated_key(request), wire.update_write(request)
        edit = wire.workspace_edit(request)
        answer = await self._workspaces.update(key, edit, write, wire.written(pb.UpdateWorkspaceResponse))
        return pb.UpdateWorkspaceResponse.FromString(answer)

    async def DeleteWorkspace(self, request: pb.DeleteWorkspaceRequest, _: Context) -> pb.DeleteWorkspaceResponse:
        key, write = wire.workspace_key(request), wire.write(request)
        answer = await self._workspaces.delete(key, write, wire.written(pb.DeleteWorkspaceResponse))
        return pb.DeleteWorkspaceResponse.FromString(answer)

    async def UndeleteWorkspace(self, request: pb.UndeleteWorkspaceRequest, _: Context) -> pb.UndeleteWorkspaceResponse:
        key, write = wire.workspace_key(request), wire.write(request)
        answer = await self._workspaces.undelete(key, write, wire.written(pb.UndeleteWorkspaceResponse))
        return pb.UndeleteWorkspaceResponse.FromString(answer)

    async def PurgeWorkspace(self, request: pb.PurgeWorkspaceRequest, _: Context) -> pb.PurgeWorkspaceResponse:
        key, write = wire.workspace_key(request), wire.write(request)
        answer = await self._workspaces.purge(key, write, forms.forgotten(pb.PurgeWorkspaceResponse))
        return pb.PurgeWorkspaceResponse.FromString(answer)
