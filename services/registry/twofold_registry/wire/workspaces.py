"""Workspaces on the wire."""

import re
from collections.abc import Sequence

from google.protobuf.message import Message

from twofold.registry.v1 import workspace_pb2 as pb
from twofold_chassis import fields, hosts
from twofold_chassis.refusals import InvalidField
from twofold_registry.resources import Answer, Edit, Listing, Page, Read, Stored, Write
from twofold_registry.wire import forms, limits, masks, pages
from twofold_registry.wire.forms import json_object, present
from twofold_registry.workspaces import (
    KEPT_FOR_EVER,
    PLAN_DEFAULT,
    Limit,
    Retention,
    Workspace,
    WorkspaceFilters,
    WorkspaceKey,
    WorkspaceSettings,
    WorkspaceState,
)

_NAME_BYTES_MAX = 255
_SUFFIXES_MAX = 50
_RETENTION_DAYS_MAX = 36_500
_NO_WORKSPACE = ""
_is_plan = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}").fullmatch
_STATES = {
    pb.WORKSPACE_STATE_ACTIVE: WorkspaceState.ACTIVE,
    pb.WORKSPACE_STATE_SUSPENDED: WorkspaceState.SUSPENDED,
}
_STATE_FORMS = {state: form for form, state in _STATES.items()}


def new_workspace(request: pb.CreateWorkspaceRequest) -> Workspace:
    present(request, "workspace")
    draft = request.workspace
    return Workspace(
        workspace_id=fields.optional_identifier(draft.workspace_id, "workspace.workspace_id") or fields.new_id(),
        display_name=_display_name(draft),
        namespace=_namespace(draft),
        plan=_plan(draft),
        state=_state(draft.state, "workspace.state") if draft.state else WorkspaceState.ACTIVE,
        settings=_settings(draft),
    )


def create_write(request: pb.CreateWorkspaceRequest) -> Write:
    return forms.write(request, _NO_WORKSPACE)


def workspace_key(
    request: (pb.GetWorkspaceRequest | pb.DeleteWorkspaceRequest | pb.UndeleteWorkspaceRequest | pb.PurgeWorkspaceRequest),
) -> WorkspaceKey:
    return WorkspaceKey(fields.identifier(request.workspace_id, "workspace_id"))


def updated_key(request: pb.UpdateWorkspaceRequest) -> WorkspaceKey:
    present(request, "workspace")
    return WorkspaceKey(fields.identifier(request.workspace.workspace_id, "workspace.workspace_id"))


def workspace_edit(request: pb.UpdateWorkspaceRequest) -> Edit:
    draft = request.workspace
    readers: masks.Readers = {
        "display_name": lambda: _display_name(draft),
        "namespace": lambda: _namespace(draft),
        "plan": lambda: _plan(draft),
        "state": lambda: _state(draft.state, "workspace.state"),
        "settings": lambda: _settings(draft),
        "settings.limits": lambda: _limits(draft),
        "settings.allowed_url_suffixes": lambda: _suffixes(draft.settings.allowed_url_suffixes),
        "settings.retention": lambda: _retention(draft),
        "settings.retention.conversation_days": lambda: _days(draft, "conversation_days"),
        "settings.retention.session_days": lambda: _days(draft, "session_days"),
    }
    return masks.edit(request.update_mask, readers)


def update_write(request: pb.UpdateWorkspaceRequest) -> Write:
    return forms.write(request, request.workspace.workspace_id, request.workspace.etag, "workspace.etag")


def write(request: pb.DeleteWorkspaceRequest | pb.UndeleteWorkspaceRequest | pb.PurgeWorkspaceRequest) -> Write:
    return forms.write(request, request.workspace_id, request.etag)


def listing(request: pb.ListWorkspacesRequest) -> Listing:
    filters = WorkspaceFilters(
        state=_state(request.state, "state").value if request.state else None,
        plan=fields.line(request.plan, "plan", bytes_max=fields.ID_BYTES_MAX) or None,
        display_name_prefix=fields.line(request.display_name_prefix, "display_name_prefix", bytes_max=_NAME_BYTES_MAX)
        or None,
    )
    return pages.listing(request, _NO_WORKSPACE, filters)


def workspace_message(stored: Stored[Workspace]) -> pb.Workspace:
    value = stored.value
    settings = value.settings
    return pb.Workspace(
        workspace_id=value.workspace_id,
        display_name=value.display_name,
        namespace=value.namespace,
        plan=value.plan,
        state=_STATE_FORMS[value.state],
        settings=pb.WorkspaceSettings(
            limits=limits.messages(settings.limits),
            allowed_url_suffixes=settings.allowed_url_suffixes,
            retention=_retention_message(settings.retention),
        ),
        create_time=fields.timestamp(stored.created_at),
        update_time=fields.timestamp(stored.updated_at),
        delete_time=forms.optional_timestamp(stored.deleted_at),
        purge_time=forms.optional_timestamp(stored.purge_at),
        etag=stored.etag,
    )


def workspace_bytes(stored: Stored[Workspace]) -> bytes:
    return workspace_message(stored).SerializeToString()


def workspace_json(stored: Stored[Workspace]) -> str:
    return json_object(workspace_message(stored))


def written(response: type[Message]) -> Answer[Stored[Workspace]]:
    return forms.written(response, workspace_message)


def got(read: Read[Stored[Workspace]]) -> pb.GetWorkspaceResponse:
    return pb.GetWorkspaceResponse(workspace=workspace_message(read.value), revision_token=read.revision.token())


def batch(ids: Sequence[str], read: Read[Sequence[Stored[Workspace]]]) -> pb.BatchGetWorkspacesResponse:
    found = pages.batch(ids, read.value, workspace_message)
    return pb.BatchGetWorkspacesResponse(
        workspaces=found.messages,
        missing_ids=found.missing,
        omitted_ids=found.omitted,
        revision_token=read.revision.token(),
    )


def listed(asked: Listing, page: Page[Stored[Workspace]]) -> pb.ListWorkspacesResponse:
    messages, token = pages.listed(asked, page, workspace_message)
    return pb.ListWorkspacesResponse(workspaces=messages, next_page_token=token)


def _display_name(draft: pb.Workspace) -> str:
    return fields.line(draft.display_name, "workspace.display_name", bytes_max=_NAME_BYTES_MAX, required=True)


def _namespace(draft: pb.Workspace) -> str:
    if draft.namespace and not hosts.is_label(draft.namespace):
        raise InvalidField("workspace.namespace", "is not a DNS label: a-z, 0-9 and -, up to 63 characters")
    return draft.namespace


def _plan(draft: pb.Workspace) -> str:
    plan = draft.plan or PLAN_DEFAULT
    if not _is_plan(plan):
        raise InvalidField(
            "workspace.plan", 'is not 1 to 63 of a-z, 0-9, ".", "_" and "-", beginning with a letter or digit'
        )
    return plan


def _state(value: pb.WorkspaceState.ValueType, field: str) -> WorkspaceState:
    state = _STATES.get(value)
    if state is None:
        raise InvalidField(field, "is not a state that a workspace can have")
    return state


def _settings(draft: pb.Workspace) -> WorkspaceSettings:
    return WorkspaceSettings(
        limits=_limits(draft),
        allowed_url_suffixes=_suffixes(draft.settings.allowed_url_suffixes),
        retention=_retention(draft),
    )


def _limits(draft: pb.Workspace) -> tuple[Limit, ...]:
    return limits.limits(draft.settings.limits, "workspace.settings.limits")


def _retention(draft: pb.Workspace) -> Retention:
    return Retention(_days(draft, "conversation_days"), _days(draft, "session_days"))


def _days(draft: pb.Workspace, name: str) -> int:
    days: int = getattr(draft.settings.retention, name)
    return fields.whole(days, f"workspace.settings.retention.{name}", least=0, most=_RETENTION_DAYS_MAX)


def _retention_message(value: Retention) -> pb.Retention | None:
    if value == KEPT_FOR_EVER:
        return None
    return pb.Retention(conversation_days=value.conversation_days, session_days=value.session_days)


def _suffixes(values: Sequence[str]) -> tuple[str, ...]:
    field = "workspace.settings.allowed_url_suffixes"
    if len(values) > _SUFFIXES_MAX:
        raise InvalidField(field, f"has {len(values)} entries, at most {_SUFFIXES_MAX} are allowed")
    lowered = tuple(value.lower() for value in values)
    for index, value in enumerate(lowered):
        if not hosts.is_name(value):
            raise InvalidField(f"{field}[{index}]", "is not a DNS name in ASCII without a dot at its begin or end")
    return lowered
