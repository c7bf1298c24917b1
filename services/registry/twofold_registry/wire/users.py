"""Users on the wire."""

from twofold.registry.v1 import user_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_chassis.requests import Attempt, attempt
from twofold_registry.resources import Edit, Page, Read, Stored
from twofold_registry.revisions import Revision
from twofold_registry.users import EMAIL_BYTES_MAX, Role, User, UserKey, folded_email
from twofold_registry.wire import masks, pages
from twofold_registry.wire.forms import json_object, present

_NAME_BYTES_MAX = 255
_ROLES = {
    pb.ROLE_OWNER: Role.OWNER,
    pb.ROLE_ADMIN: Role.ADMIN,
    pb.ROLE_MEMBER: Role.MEMBER,
    pb.ROLE_SERVICE: Role.SERVICE,
}
_ROLE_FORMS = {role: form for form, role in _ROLES.items()}


def new_user(request: pb.CreateUserRequest) -> User:
    present(request, "user")
    draft = request.user
    return User(
        workspace_id=fields.identifier(draft.workspace_id, "user.workspace_id"),
        user_id=fields.optional_identifier(draft.user_id, "user.user_id") or fields.new_id(),
        email=_email(draft),
        identity_id=_identity(draft),
        display_name=_display_name(draft),
        role=_role(draft) if draft.role else Role.MEMBER,
    )


def create_attempt(request: pb.CreateUserRequest) -> Attempt:
    return attempt(request.user.workspace_id, "CreateUser", request, request.request_id)


def user_key(request: pb.GetUserRequest | pb.DeleteUserRequest) -> UserKey:
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
        "email": lambda: _email(draft),
        "identity_id": lambda: _identity(draft),
        "display_name": lambda: _display_name(draft),
        "role": lambda: _role(draft),
    }
    return masks.edit(request.update_mask, readers)


def update_attempt(request: pb.UpdateUserRequest) -> Attempt:
    return attempt(request.user.workspace_id, "UpdateUser", request, request.request_id)


def delete_attempt(request: pb.DeleteUserRequest) -> Attempt:
    return attempt(request.workspace_id, "DeleteUser", request, request.request_id)


def list_place(request: pb.ListUsersRequest) -> tuple[str, str, int]:
    """The workspace, the id the page begins behind, and the size of the page."""
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    cursor = fields.page_place(request.page_token, _query(workspace_id), str)
    return workspace_id, cursor[0] if cursor else "", fields.page_size(request.page_size)


def user_message(stored: Stored[User]) -> pb.User:
    value = stored.value
    return pb.User(
        workspace_id=value.workspace_id,
        user_id=value.user_id,
        email=value.email,
        identity_id=value.identity_id,
        display_name=value.display_name,
        role=_ROLE_FORMS[value.role],
        create_time=fields.timestamp(stored.created_at),
        update_time=fields.timestamp(stored.updated_at),
        etag=stored.etag,
    )


def user_bytes(stored: Stored[User]) -> bytes:
    return user_message(stored).SerializeToString()


def user_json(stored: Stored[User]) -> str:
    return json_object(user_message(stored))


def created(stored: Stored[User], revision: Revision) -> bytes:
    return pb.CreateUserResponse(user=user_message(stored), revision_token=revision.token()).SerializeToString()


def got(read: Read[Stored[User]]) -> pb.GetUserResponse:
    return pb.GetUserResponse(user=user_message(read.value), revision_token=read.revision.token())


def listed(workspace_id: str, page: Page[Stored[User]]) -> pb.ListUsersResponse:
    query = _query(workspace_id)
    messages, token = pages.filled(page, query, user_message, lambda stored: [stored.value.user_id])
    return pb.ListUsersResponse(users=messages, next_page_token=token)


def updated(stored: Stored[User], revision: Revision) -> bytes:
    return pb.UpdateUserResponse(user=user_message(stored), revision_token=revision.token()).SerializeToString()


def deleted(_: None, revision: Revision) -> bytes:
    return pb.DeleteUserResponse(revision_token=revision.token()).SerializeToString()


def _query(workspace_id: str) -> tuple[str, str]:
    return "ListUsers", workspace_id


def _email(draft: pb.User) -> str:
    return folded_email(fields.line(draft.email, "user.email", bytes_max=EMAIL_BYTES_MAX), "user.email")


def _identity(draft: pb.User) -> str:
    return fields.optional_identifier(draft.identity_id, "user.identity_id") or ""


def _display_name(draft: pb.User) -> str:
    return fields.line(draft.display_name, "user.display_name", bytes_max=_NAME_BYTES_MAX)


def _role(draft: pb.User) -> Role:
    role = _ROLES.get(draft.role)
    if role is None:
        raise InvalidField("user.role", "is not a role that a user can have")
    return role
