"""The gRPC face of workspaces."""

from twofold.registry.v1 import workspace_pb2 as pb
from twofold.registry.v1.workspace_pb2_grpc import WorkspaceServiceServicer
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_registry.wire import forms
from twofold_registry.wire import workspaces as wire
from twofold_registry.workspaces import Workspaces


class WorkspaceService(WorkspaceServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    async def CreateWorkspace(self, request: pb.CreateWorkspaceRequest, _: Context) -> pb.CreateWorkspaceResponse:
        workspace = wire.new_workspace(request)
        answer = await self._workspaces.create(workspace, wire.create_attempt(request), wire.created)
        return pb.CreateWorkspaceResponse.FromString(answer)

    async def GetWorkspace(self, request: pb.GetWorkspaceRequest, _: Context) -> pb.GetWorkspaceResponse:
        workspace_id = fields.identifier(request.workspace_id, "workspace_id")
        return wire.got(await self._workspaces.get(workspace_id))

    async def ListWorkspaces(self, request: pb.ListWorkspacesRequest, _: Context) -> pb.ListWorkspacesResponse:
        after, size = wire.list_place(request)
        return wire.listed(await self._workspaces.list(after, size))

    async def UpdateWorkspace(self, request: pb.UpdateWorkspaceRequest, _: Context) -> pb.UpdateWorkspaceResponse:
        workspace_id = wire.updated_id(request)
        edit = wire.workspace_edit(request)
        etag = forms.etag(request.workspace.etag, "workspace.etag")
        answer = await self._workspaces.update(workspace_id, edit, etag, wire.update_attempt(request), wire.updated)
        return pb.UpdateWorkspaceResponse.FromString(answer)

    async def DeleteWorkspace(self, request: pb.DeleteWorkspaceRequest, _: Context) -> pb.DeleteWorkspaceResponse:
        workspace_id = fields.identifier(request.workspace_id, "workspace_id")
        etag = forms.etag(request.etag, "etag")
        answer = await self._workspaces.delete(workspace_id, etag, wire.delete_attempt(request), wire.deleted)
        return pb.DeleteWorkspaceResponse.FromString(answer)
