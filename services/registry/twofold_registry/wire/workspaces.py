"""Workspaces on the wire."""

from collections.abc import Sequence

from twofold.registry.v1 import workspace_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_chassis.requests import Attempt, attempt
from twofold_registry import hosts
from twofold_registry.resources import Edit, Page, Read, Stored
from twofold_registry.revisions import Revision
from twofold_registry.wire import masks, pages
from twofold_registry.wire.forms import json_object, present
from twofold_registry.workspaces import Workspace, WorkspaceSettings

_NAME_BYTES_MAX = 255
_SUFFIXES_MAX = 50
_LIST = "ListWorkspaces"
_NO_WORKSPACE = ""


def new_workspace(request: pb.CreateWorkspaceRequest) -> Workspace:
    present(request, "workspace")
    draft = request.workspace
    return Workspace(
        workspace_id=fields.optional_identifier(draft.workspace_id, "workspace.workspace_id") or fields.new_id(),
        display_name=_display_name(draft),
        namespace=_namespace(draft),
        settings=_settings(draft),
    )


def create_attempt(request: pb.CreateWorkspaceRequest) -> Attempt:
    return attempt(_NO_WORKSPACE, "CreateWorkspace", request, request.request_id)


def updated_id(request: pb.UpdateWorkspaceRequest) -> str:
    present(request, "workspace")
    return fields.identifier(request.workspace.workspace_id, "workspace.workspace_id")


def workspace_edit(request: pb.UpdateWorkspaceRequest) -> Edit:
    draft = request.workspace
    readers: masks.Readers = {
        "display_name": lambda: _display_name(draft),
        "namespace": lambda: _namespace(draft),
        "settings": lambda: _settings(draft),
        "settings.allowed_url_suffixes": lambda: _suffixes(draft.settings.allowed_url_suffixes),
    }
    return masks.edit(request.update_mask, readers)


def update_attempt(request: pb.UpdateWorkspaceRequest) -> Attempt:
    return attempt(request.workspace.workspace_id, "UpdateWorkspace", request, request.request_id)


def delete_attempt(request: pb.DeleteWorkspaceRequest) -> Attempt:
    return attempt(request.workspace_id, "DeleteWorkspace", request, request.request_id)


def list_place(request: pb.ListWorkspacesRequest) -> tuple[str, int]:
    """The id the page begins behind, and the size of the page."""
    cursor = fields.page_place(request.page_token, _LIST, str)
    return cursor[0] if cursor else "", fields.page_size(request.page_size)


def workspace_message(stored: Stored[Workspace]) -> pb.Workspace:
    value = stored.value
    return pb.Workspace(
        workspace_id=value.workspace_id,
        display_name=value.display_name,
        namespace=value.namespace,
        settings=pb.WorkspaceSettings(allowed_url_suffixes=value.settings.allowed_url_suffixes),
        create_time=fields.timestamp(stored.created_at),
        update_time=fields.timestamp(stored.updated_at),
        etag=stored.etag,
    )


def workspace_bytes(stored: Stored[Workspace]) -> bytes:
    return workspace_message(stored).SerializeToString()


def workspace_json(stored: Stored[Workspace]) -> str:
    return json_object(workspace_message(stored))


def created(stored: Stored[Workspace], revision: Revision) -> bytes:
    message = workspace_message(stored)
    return pb.CreateWorkspaceResponse(workspace=message, revision_token=revision.token()).SerializeToString()


def got(read: Read[Stored[Workspace]]) -> pb.GetWorkspaceResponse:
    return pb.GetWorkspaceResponse(workspace=workspace_message(read.value), revision_token=read.revision.token())


def listed(page: Page[Stored[Workspace]]) -> pb.ListWorkspacesResponse:
    messages, token = pages.filled(page, _LIST, workspace_message, lambda stored: [stored.value.workspace_id])
    return pb.ListWorkspacesResponse(workspaces=messages, next_page_token=token)


def updated(stored: Stored[Workspace], revision: Revision) -> bytes:
    message = workspace_message(stored)
    return pb.UpdateWorkspaceResponse(workspace=message, revision_token=revision.token()).SerializeToString()


def deleted(_: None, revision: Revision) -> bytes:
    return pb.DeleteWorkspaceResponse(revision_token=revision.token()).SerializeToString()


def _display_name(draft: pb.Workspace) -> str:
    return fields.line(draft.display_name, "workspace.display_name", bytes_max=_NAME_BYTES_MAX, required=True)


def _namespace(draft: pb.Workspace) -> str:
    if draft.namespace and not hosts.is_label(draft.namespace):
        raise InvalidField("workspace.namespace", "is not a DNS label: a-z, 0-9 and -, up to 63 characters")
    return draft.namespace


def _settings(draft: pb.Workspace) -> WorkspaceSettings:
    return WorkspaceSettings(allowed_url_suffixes=_suffixes(draft.settings.allowed_url_suffixes))


def _suffixes(values: Sequence[str]) -> tuple[str, ...]:
    field = "workspace.settings.allowed_url_suffixes"
    if len(values) > _SUFFIXES_MAX:
        raise InvalidField(field, f"has {len(values)} entries, at most {_SUFFIXES_MAX} are allowed")
    lowered = tuple(value.lower() for value in values)
    for index, value in enumerate(lowered):
        if not hosts.is_name(value):
            raise InvalidField(f"{field}[{index}]", "is not a DNS name in ASCII without a dot at its begin or end")
    return lowered
