"""Users on the wire."""

from collections.abc import Sequence

from google.protobuf.message import Message

from twofold.registry.v1 import user_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_registry.resources import Answer, Edit, Listing, Page, Read, Stored, Write
from twofold_registry.users import EMAIL_BYTES_MAX, Role, User, UserFilters, UserKey, UserState, folded_email
from twofold_registry.wire import forms, limits, masks, pages
from twofold_registry.wire.forms import json_object, present
from twofold_registry.workspaces import Limit

_NAME_BYTES_MAX = 255
_ROLES = {
    pb.ROLE_OWNER: Role.OWNER,
    pb.ROLE_ADMIN: Role.ADMIN,
    pb.ROLE_MEMBER: Role.MEMBER,
    pb.ROLE_SERVICE: Role.SERVICE,
}
_ROLE_FORMS = {role: form for form, role in _ROLES.items()}
_STATES = {pb.USER_STATE_ACTIVE: UserState.ACTIVE, pb.USER_STATE_SUSPENDED: UserState.SUSPENDED}
_STATE_FORMS = {state: form for form, state in _STATES.items()}


def new_user(request: pb.CreateUserRequest) -> User:
    present(request, "user")
    draft = request.user
    return User(
        workspace_id=fields.identifier(draft.workspace_id, "user.workspace_id"),
        user_id=fields.optional_identifier(draft.user_id, "user.user_id") or fields.new_id(),
        email=_email(draft.email, "user.email"),
        identity_id=_identity(draft),
        display_name=_display_name(draft),
        role=_role(draft.role, "user.role") if draft.role else Role.MEMBER,
        state=_state(draft.state, "user.state") if draft.state else UserState.ACTIVE,
        limits=_limits(draft),
    )


def create_write(request: pb.CreateUserRequest) -> Write:
    return forms.write(request, request.user.workspace_id)


def user_key(
    request: pb.GetUserRequest | pb.DeleteUserRequest | pb.UndeleteUserRequest | pb.PurgeUserRequest,
) -> UserKey:
    return UserKey(
        fields.identifier(request.workspace_id, "workspace_id"),
        fields.identifier(request.user_id, "user_id"),
    )


def updated_key(request: pb.UpdateUserRequest) -> UserKey:
    present(request, "user")
    return UserKey(
        fields.identifier(request.user.workspace_id, "user.workspace_id"),
        fields.identifier(request.user.user_id, "user.user_id"),
    )


def user_edit(request: pb.UpdateUserRequest) -> Edit:
    draft = request.user
    readers: masks.Readers = {
        "email": lambda: _email(draft.email, "user.email"),
        "identity_id": lambda: _identity(draft),
        "display_name": lambda: _display_name(draft),
        "role": lambda: _role(draft.role, "user.role"),
        "state": lambda: _state(draft.state, "user.state"),
        "limits": lambda: _limits(draft),
    }
    return masks.edit(request.update_mask, readers)


def update_write(request: pb.UpdateUserRequest) -> Write:
    return forms.write(request, request.user.workspace_id, request.user.etag, "user.etag")


def write(request: pb.DeleteUserRequest | pb.UndeleteUserRequest | pb.PurgeUserRequest) -> Write:
    return forms.write(request, request.workspace_id, request.etag)


def listing(request: pb.ListUsersRequest) -> Listing:
    filters = UserFilters(
        role=_role(request.role, "role").value if request.role else None,
        state=_state(request.state, "state").value if request.state else None,
        email=_email(request.email, "email") or None,
        identity_id=fields.optional_identifier(request.identity_id, "identity_id"),
    )
    return pages.listing(request, fields.identifier(request.workspace_id, "workspace_id"), filters)


def user_message(stored: Stored[User]) -> pb.User:
    value = stored.value
    return pb.User(
        workspace_id=value.workspace_id,
        user_id=value.user_id,
        email=value.email,
        identity_id=value.identity_id,
        display_name=value.display_name,
        role=_ROLE_FORMS[value.role],
        state=_STATE_FORMS[value.state],
        limits=limits.messages(value.limits),
        create_time=fields.timestamp(stored.created_at),
        update_time=fields.timestamp(stored.updated_at),
        delete_time=forms.optional_timestamp(stored.deleted_at),
        purge_time=forms.optional_timestamp(stored.purge_at),
        etag=stored.etag,
    )


def user_bytes(stored: Stored[User]) -> bytes:
    return user_message(stored).SerializeToString()


def user_json(stored: Stored[User]) -> str:
    return json_object(user_message(stored))


def written(response: type[Message]) -> Answer[Stored[User]]:
    return forms.written(response, user_message)


def got(read: Read[Stored[User]]) -> pb.GetUserResponse:
    return pb.GetUserResponse(user=user_message(read.value), revision_token=read.revision.token())


def batch(ids: Sequence[str], read: Read[Sequence[Stored[User]]]) -> pb.BatchGetUsersResponse:
    found = pages.batch(ids, read.value, user_message)
    return pb.BatchGetUsersResponse(
        users=found.messages,
        missing_ids=found.missing,
        omitted_ids=found.omitted,
        revision_token=read.revision.token(),
    )


def listed(asked: Listing, page: Page[Stored[User]]) -> pb.ListUsersResponse:
    messages, token = pages.listed(asked, page, user_message)
    return pb.ListUsersResponse(users=messages, next_page_token=token)


def _email(value: str, field: str) -> str:
    return folded_email(fields.line(value, field, bytes_max=EMAIL_BYTES_MAX), field)


def _identity(draft: pb.User) -> str:
    return fields.optional_identifier(draft.identity_id, "user.identity_id") or ""


def _display_name(draft: pb.User) -> str:
    return fields.line(draft.display_name, "user.display_name", bytes_max=_NAME_BYTES_MAX)


def _limits(draft: pb.User) -> tuple[Limit, ...]:
    return limits.limits(draft.limits, "user.limits", of_user=True)


def _role(value: pb.Role.ValueType, field: str) -> Role:
    role = _ROLES.get(value)
    if role is None:
        raise InvalidField(field, "is not a role that a user can have")
    return role


def _state(value: pb.UserState.ValueType, field: str) -> UserState:
    state = _STATES.get(value)
    if state is None:
        raise InvalidField(field, "is not a state that a user can have")
    return state
