import asyncio

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.registry.stubs import Registry, invalid, lost, taken, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import user_pb2 as pb


async def get(api: Registry, workspace_id: str, user_id: str) -> pb.User:
    return (await api.users.GetUser(pb.GetUserRequest(workspace_id=workspace_id, user_id=user_id))).user


async def update(api: Registry, paths: list[str], **values: object) -> pb.User:
    request = pb.UpdateUserRequest(user=pb.User(**values), update_mask=FieldMask(paths=paths))  # type: ignore[arg-type]
    return (await api.users.UpdateUser(request)).user


async def delete(api: Registry, workspace_id: str, user_id: str, etag: str = "") -> None:
    await api.users.DeleteUser(pb.DeleteUserRequest(workspace_id=workspace_id, user_id=user_id, etag=etag))


async def test_a_user_lives_from_its_creation_to_its_deletion(api: Registry, workspace: str) -> None:
    created = await api.make_user(workspace, "ann", email="Ann@Acme.Test", identity_id="auth|1", display_name="Ann")
    assert (created.email, created.role) == ("ann@acme.test", pb.ROLE_MEMBER)
    assert await get(api, workspace, "ann") == created

    values = {"workspace_id": workspace, "user_id": "ann", "role": pb.ROLE_ADMIN, "display_name": "ignored"}
    updated = await update(api, ["role"], etag=created.etag, **values)
    assert (updated.role, updated.display_name, updated.email) == (pb.ROLE_ADMIN, "Ann", "ann@acme.test")
    assert updated.etag != created.etag
    assert await get(api, workspace, "ann") == updated

    with lost():
        await update(api, ["role"], etag=created.etag, **values)
    with lost():
        await delete(api, workspace, "ann", etag=created.etag)
    await delete(api, workspace, "ann", etag=updated.etag)
    for gone in (get(api, workspace, "ann"), delete(api, workspace, "ann"), update(api, ["role"], **values)):
        with unknown(Reason.REASON_USER_UNKNOWN):
            await gone


async def test_every_field_of_a_mask_is_changed(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann")
    values = {"email": "new@acme.test", "identity_id": "auth|2", "display_name": "New", "role": pb.ROLE_SERVICE}
    updated = await update(api, list(values), workspace_id=workspace, user_id="ann", **values)
    assert {name: getattr(updated, name) for name in values} == values


async def test_an_id_is_never_used_again(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann")
    with taken(Reason.REASON_USER_EXISTS):
        await api.make_user(workspace, "ann", email="other@acme.test")
    await delete(api, workspace, "ann")
    with taken(Reason.REASON_USER_EXISTS):
        await api.make_user(workspace, "ann")


async def test_an_address_belongs_to_one_user_without_regard_to_case(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann", email="strasse@acme.test")
    with taken(Reason.REASON_EMAIL_TAKEN):
        await api.make_user(workspace, "bob", email="STRAßE@acme.test")
    await api.make_user(workspace, "bob")
    with taken(Reason.REASON_EMAIL_TAKEN):
        await update(api, ["email"], workspace_id=workspace, user_id="bob", email="Strasse@Acme.test")
    await delete(api, workspace, "ann")
    await api.make_user(workspace, "eve", email="strasse@acme.test")


async def test_an_identity_belongs_to_one_user(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann", identity_id="auth|1")
    with taken(Reason.REASON_IDENTITY_TAKEN):
        await api.make_user(workspace, "bob", identity_id="auth|1")
    await api.make_user(workspace, "bob", identity_id="AUTH|1")
    with taken(Reason.REASON_IDENTITY_TAKEN):
        await update(api, ["identity_id"], workspace_id=workspace, user_id="bob", identity_id="auth|1")
    await delete(api, workspace, "ann")
    await update(api, ["identity_id"], workspace_id=workspace, user_id="bob", identity_id="auth|1")


async def test_users_without_identity_and_machines_without_address_do_not_meet(api: Registry, workspace: str) -> None:
    for name in ("one", "two"):
        machine = await api.make_user(workspace, name, email="", role=pb.ROLE_SERVICE)
        assert (machine.email, machine.identity_id) == ("", "")


async def test_the_same_address_lives_in_two_workspaces(api: Registry, workspace: str) -> None:
    other = (await api.make_workspace("")).workspace_id
    await api.make_user(workspace, "ann", email="ann@acme.test")
    await api.make_user(other, "ann", email="ann@acme.test")


async def test_of_many_at_once_one_gets_the_address(api: Registry, workspace: str) -> None:
    attempts = [api.make_user(workspace, f"user-{index}", email="one@acme.test") for index in range(8)]
    answers = await asyncio.gather(*attempts, return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(refusals) == 7
    assert {refusal.code() for refusal in refusals} == {grpc.StatusCode.ALREADY_EXISTS}


async def test_only_a_machine_may_be_without_an_address(api: Registry, workspace: str) -> None:
    with invalid("user.email"):
        await api.make_user(workspace, "ann", email="")
    await api.make_user(workspace, "bot", email="", role=pb.ROLE_SERVICE)
    with invalid("user.email"):
        await update(api, ["role"], workspace_id=workspace, user_id="bot", role=pb.ROLE_MEMBER)
    await api.make_user(workspace, "bob")
    with invalid("user.email"):
        await update(api, ["email"], workspace_id=workspace, user_id="bob")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"email": "nobody"}, "email"),
        ({"email": "@acme.test"}, "email"),
        ({"email": "ann@"}, "email"),
        ({"email": "ann@@acme.test"}, "email"),
        ({"email": "a@b@c"}, "email"),
        ({"email": "an n@acme.test"}, "email"),
        ({"email": "ann@acme.test\u2003"}, "email"),
        ({"email": "ann\r\n@acme.test"}, "email"),
        ({"email": "a" * 244 + "@acme.test1"}, "email"),
        ({"email": "ΐ" * 120 + "@acme.test"}, "email"),  # its folded form is three times as long
        ({"role": 99}, "role"),
        ({"identity_id": "x" * 256}, "identity_id"),
        ({"identity_id": "a\x7fb"}, "identity_id"),
        ({"display_name": "a\tb"}, "display_name"),
        ({"user_id": "\n"}, "user_id"),
        ({"workspace_id": ""}, "workspace_id"),
    ],
)
async def test_bad_values_are_refused_by_field(api: Registry, workspace: str, values: dict[str, object], field: str) -> None:
    given = {"workspace_id": workspace, "user_id": "ann", **values}
    with invalid(f"user.{field}"):
        await api.make_user(**given)  # type: ignore[arg-type]


async def test_a_role_is_named_when_it_is_set(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann")
    with invalid("user.role"):
        await update(api, ["role"], workspace_id=workspace, user_id="ann")


@pytest.mark.parametrize("paths", [[], ["user_id"], ["create_time"], ["settings"], ["email", "nothing"]])
async def test_a_mask_names_known_fields(api: Registry, workspace: str, paths: list[str]) -> None:
    await api.make_user(workspace, "ann")
    with invalid("update_mask"):
        await update(api, paths, workspace_id=workspace, user_id="ann", email="new@acme.test")


async def test_users_of_an_unknown_workspace_are_unknown(api: Registry) -> None:
    with unknown(Reason.REASON_USER_UNKNOWN):
        await get(api, "nowhere", "ann")
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await api.make_user("nowhere", "ann")
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await api.users.ListUsers(pb.ListUsersRequest(workspace_id="nowhere"))
