import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.registry.stubs import Connection, Registry, invalid, lost, refused, taken, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import user_pb2 as pb
from twofold.registry.v1.workspace_pb2 import (
    LIMIT_KIND_USER_HOUR_MESSAGES,
    LIMIT_KIND_USER_MINUTE_MESSAGES,
    LIMIT_KIND_WORKSPACE_DAY_TOKENS,
    Limit,
)
from twofold_registry.revisions import Revision, revision_of


async def get(api: Registry, workspace_id: str, user_id: str) -> pb.User:
    return (await api.users.GetUser(pb.GetUserRequest(workspace_id=workspace_id, user_id=user_id))).user


async def update(api: Registry, paths: list[str], **values: object) -> pb.User:
    request = pb.UpdateUserRequest(user=pb.User(**values), update_mask=FieldMask(paths=paths))  # type: ignore[arg-type]
    return (await api.users.UpdateUser(request)).user


async def delete(api: Registry, workspace_id: str, user_id: str, etag: str = "") -> None:
    await api.users.DeleteUser(pb.DeleteUserRequest(workspace_id=workspace_id, user_id=user_id, etag=etag))


async def undelete(api: Registry, workspace_id: str, user_id: str, etag: str = "") -> pb.User:
    request = pb.UndeleteUserRequest(workspace_id=workspace_id, user_id=user_id, etag=etag)
    return (await api.users.UndeleteUser(request)).user


async def purge(api: Registry, workspace_id: str, user_id: str, etag: str = "") -> None:
    await api.users.PurgeUser(pb.PurgeUserRequest(workspace_id=workspace_id, user_id=user_id, etag=etag))


async def listed(api: Registry, workspace_id: str, **values: Any) -> list[str]:
    users = (await api.users.ListUsers(pb.ListUsersRequest(workspace_id=workspace_id, **values))).users
    return [user.user_id for user in users]


def not_deleted() -> Any:
    return refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_NOT_DELETED)


def last_owner() -> Any:
    return refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_LAST_OWNER)


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
    values: dict[str, Any] = {
        "email": "new@acme.test",
        "identity_id": "auth|2",
        "display_name": "New",
        "role": pb.ROLE_SERVICE,
        "state": pb.USER_STATE_SUSPENDED,
        "limits": [Limit(kind=LIMIT_KIND_USER_HOUR_MESSAGES, amount=47)],
    }
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


async def test_one_update_makes_a_machine_without_address_of_a_person_and_the_reverse(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann")
    machine = await update(api, ["email", "role"], workspace_id=workspace, user_id="ann", role=pb.ROLE_SERVICE)
    assert (machine.email, machine.role) == ("", pb.ROLE_SERVICE)
    values: dict[str, Any] = {"email": "ann@acme.test", "role": pb.ROLE_MEMBER}
    person = await update(api, ["role", "email"], workspace_id=workspace, user_id="ann", **values)
    assert (person.email, person.role) == ("ann@acme.test", pb.ROLE_MEMBER)


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
        ({"state": 99}, "state"),
        ({"limits": [Limit(kind=LIMIT_KIND_USER_HOUR_MESSAGES, amount=-1)]}, "limits[0].amount"),
        ({"limits": [Limit(kind=LIMIT_KIND_USER_HOUR_MESSAGES, amount=10**15 + 1)]}, "limits[0].amount"),
        ({"limits": [Limit(amount=1)]}, "limits[0].kind"),
        ({"limits": [Limit(kind=LIMIT_KIND_WORKSPACE_DAY_TOKENS, amount=1)]}, "limits[0].kind"),
        ({"limits": [Limit(kind=LIMIT_KIND_USER_HOUR_MESSAGES, amount=1)] * 2}, "limits[1].kind"),
        ({"limits": [Limit(kind=LIMIT_KIND_USER_HOUR_MESSAGES, amount=1)] * 7}, "limits"),
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


async def test_a_role_and_a_state_are_named_when_they_are_set(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann")
    for name in ("role", "state"):
        with invalid(f"user.{name}"):
            await update(api, [name], workspace_id=workspace, user_id="ann")


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


async def test_limits_of_a_user_are_in_one_order(api: Registry, workspace: str) -> None:
    limits = [
        Limit(kind=LIMIT_KIND_USER_MINUTE_MESSAGES, amount=0, shadow=True),
        Limit(kind=LIMIT_KIND_USER_HOUR_MESSAGES, amount=10**15),
    ]
    user = await api.make_user(workspace, "ann", limits=limits)
    assert list(user.limits) == limits[::-1]
    assert await get(api, workspace, "ann") == user


async def test_a_deleted_user_is_restored_with_its_grants(api: Registry, workspace: str) -> None:
    created = await api.make_user(workspace, "ann", identity_id="auth|1", display_name="Ann")
    await api.make_agent(workspace, "helper")
    await api.grant(workspace, "ann", "helper")
    gone = (await api.users.DeleteUser(pb.DeleteUserRequest(workspace_id=workspace, user_id="ann"))).user
    assert gone.purge_time.ToDatetime() - gone.delete_time.ToDatetime() == timedelta(days=30)
    assert not (await api.check(workspace, "ann", "helper")).allowed
    shown = pb.GetUserRequest(workspace_id=workspace, user_id="ann", show_deleted=True)
    assert (await api.users.GetUser(shown)).user == gone

    with lost():
        await undelete(api, workspace, "ann", etag=created.etag)
    back = await undelete(api, workspace, "ann", etag=gone.etag)
    assert (await api.check(workspace, "ann", "helper")).allowed
    assert back.etag not in (created.etag, gone.etag)
    for each in (created, back):
        each.ClearField("etag")
        each.ClearField("update_time")
    assert back == created
    with not_deleted():
        await undelete(api, workspace, "ann")
    with unknown(Reason.REASON_USER_UNKNOWN):
        await undelete(api, workspace, "nobody")


async def test_who_was_given_the_address_or_the_identity_meanwhile_keeps_it(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann", email="ann@acme.test")
    await api.make_user(workspace, "bob", identity_id="auth|1")
    for name in ("ann", "bob"):
        await delete(api, workspace, name)
    await api.make_user(workspace, "eve", email="ann@acme.test", identity_id="auth|1")
    with taken(Reason.REASON_EMAIL_TAKEN):
        await undelete(api, workspace, "ann")
    with taken(Reason.REASON_IDENTITY_TAKEN):
        await undelete(api, workspace, "bob")
    await delete(api, workspace, "eve")
    assert (await undelete(api, workspace, "ann")).email == "ann@acme.test"
    await undelete(api, workspace, "bob")


async def test_of_a_purged_user_only_the_id_is_left(api: Registry, owner: Connection, workspace: str) -> None:
    await api.make_user(workspace, "ann", email="secret@acme.test", identity_id="secret|1", display_name="Secret")
    await api.make_agent(workspace, "helper")
    await api.grant(workspace, "ann", "helper")
    with not_deleted():
        await purge(api, workspace, "ann")
    await delete(api, workspace, "ann")
    with lost():
        await purge(api, workspace, "ann", etag="0" * 16)
    await purge(api, workspace, "ann")

    row = await owner.fetchval("SELECT u::text FROM registry.users u WHERE workspace_id = $1", workspace)
    assert "secret" not in row.lower()
    assert not await owner.fetchval("SELECT count(*) FROM registry.grants WHERE workspace_id = $1", workspace)
    entry = (await api.trail(workspace, resource_kind="user"))[-1]
    assert (entry.action, entry.resource_id) == ("user.purge", "ann")
    assert "ecret" not in str(entry)
    assert await listed(api, workspace, show_deleted=True) == []
    shown = pb.GetUserRequest(workspace_id=workspace, user_id="ann", show_deleted=True)
    for gone in (api.users.GetUser(shown), undelete(api, workspace, "ann"), purge(api, workspace, "ann")):
        with unknown(Reason.REASON_USER_UNKNOWN):
            await gone
    with taken(Reason.REASON_USER_EXISTS):
        await api.make_user(workspace, "ann")


async def test_the_last_active_owner_stays(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann", role=pb.ROLE_OWNER)
    await api.make_user(workspace, "bob", role=pb.ROLE_OWNER, state=pb.USER_STATE_SUSPENDED)
    ann = {"workspace_id": workspace, "user_id": "ann"}
    with last_owner():
        await update(api, ["role"], role=pb.ROLE_ADMIN, **ann)
    with last_owner():
        await update(api, ["state"], state=pb.USER_STATE_SUSPENDED, **ann)
    with last_owner():
        await delete(api, workspace, "ann")
    await update(api, ["display_name"], display_name="Ann", **ann)
    await update(api, ["state"], state=pb.USER_STATE_ACTIVE, workspace_id=workspace, user_id="bob")
    await delete(api, workspace, "ann")
    with last_owner():
        await delete(api, workspace, "bob")


async def test_of_two_owners_who_leave_at_once_one_stays(api: Registry, workspace: str) -> None:
    for name in ("ann", "bob"):
        await api.make_user(workspace, name, role=pb.ROLE_OWNER)
    answers = await asyncio.gather(*(delete(api, workspace, name) for name in ("ann", "bob")), return_exceptions=True)
    assert [type(answer) for answer in answers].count(type(None)) == 1
    assert len(await listed(api, workspace)) == 1


async def test_a_batch_tells_what_there_is_and_what_there_is_not(api: Registry, workspace: str) -> None:
    for name in ("ann", "bob", "eve"):
        await api.make_user(workspace, name)
    await delete(api, workspace, "eve")
    ids = ["nobody", "eve", "bob", "ann", "no\u00f6ne"]
    found = await api.users.BatchGetUsers(pb.BatchGetUsersRequest(workspace_id=workspace, user_ids=ids))
    assert [user.user_id for user in found.users] == ["bob", "ann"]
    assert list(found.missing_ids) == ["nobody", "eve", "no\u00f6ne"]
    assert found.users[0] == await get(api, workspace, "bob")
    request = pb.BatchGetUsersRequest(workspace_id=workspace, user_ids=ids, show_deleted=True)
    request.min_revision_token = found.revision_token
    assert [user.user_id for user in (await api.users.BatchGetUsers(request)).users] == ["eve", "bob", "ann"]
    for ids in (["nobody"], ["ann"]):
        found = await api.users.BatchGetUsers(pb.BatchGetUsersRequest(workspace_id="nowhere", user_ids=ids))
        assert (list(found.users), list(found.missing_ids)) == ([], ids)
        assert found.revision_token


@pytest.mark.parametrize(
    ("ids", "field"),
    [
        ([], "user_ids"),
        ([f"user-{number}" for number in range(501)], "user_ids"),
        (["ann", "bob", "ann"], "user_ids[2]"),
        (["ann", ""], "user_ids[1]"),
        (["ann", "x" * 256], "user_ids[1]"),
        (["a\0b"], "user_ids[0]"),
    ],
)
async def test_a_batch_has_one_to_five_hundred_ids_each_once(
    api: Registry, workspace: str, ids: list[str], field: str
) -> None:
    with invalid(field):
        await api.users.BatchGetUsers(pb.BatchGetUsersRequest(workspace_id=workspace, user_ids=ids))


async def test_a_batch_of_five_hundred_is_whole(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "user-7")
    ids = [f"user-{number}" for number in range(500)]
    found = await api.users.BatchGetUsers(pb.BatchGetUsersRequest(workspace_id=workspace, user_ids=ids))
    assert [user.user_id for user in found.users] == ["user-7"]
    assert len(found.missing_ids) == 499


async def test_users_are_found_by_what_they_are(api: Registry, workspace: str) -> None:
    await api.make_user(workspace, "ann", role=pb.ROLE_OWNER, identity_id="auth|1")
    await api.make_user(workspace, "bob", email="Bob@Acme.Test")
    await api.make_user(workspace, "bot", email="", role=pb.ROLE_SERVICE, state=pb.USER_STATE_SUSPENDED)
    await api.make_user(workspace, "eve", email="eve@acme.test")
    await delete(api, workspace, "eve")
    assert await listed(api, workspace, role=pb.ROLE_OWNER) == ["ann"]
    assert await listed(api, workspace, role=pb.ROLE_ADMIN) == []
    assert await listed(api, workspace, state=pb.USER_STATE_SUSPENDED) == ["bot"]
    assert await listed(api, workspace, email="BOB@ACME.TEST") == ["bob"]
    assert await listed(api, workspace, identity_id="auth|1") == ["ann"]
    assert await listed(api, workspace, identity_id="AUTH|1") == []
    assert await listed(api, workspace, email="bob@acme.test", role=pb.ROLE_OWNER) == []
    assert await listed(api, workspace, email="eve@acme.test") == []
    assert await listed(api, workspace, email="eve@acme.test", show_deleted=True) == ["eve"]
    assert await listed(api, workspace, show_deleted=True, order_by="id desc") == ["eve", "bot", "bob", "ann"]
    bad: dict[str, Any] = {"role": 99, "state": 99, "email": "nobody", "identity_id": "a\nb"}
    for name, value in bad.items():
        with invalid(name):
            await listed(api, workspace, **{name: value})


async def test_what_is_only_validated_is_checked_in_full_and_leaves_nothing(
    api: Registry, owner: Connection, workspace: str
) -> None:
    ann = await api.make_user(workspace, "ann", email="ann@acme.test", role=pb.ROLE_OWNER)
    await api.make_user(workspace, "eve")
    await delete(api, workspace, "eve")

    async def state() -> list[Any]:
        tables = ("users", "audit_entries", "audit_heads", "changes", "requests")
        texts = [f"SELECT string_agg(t::text, ';' ORDER BY t::text) FROM registry.{table} t" for table in tables]
        return [await owner.fetchval(f"{text} WHERE workspace_id = $1", workspace) for text in texts] + [
            await owner.fetchval("SELECT revision FROM registry.registry_head")
        ]

    before = await state()
    only: dict[str, Any] = {"validate_only": True, "request_id": "r1"}
    bob = pb.User(workspace_id=workspace, user_id="bob", email="BOB@acme.test")
    told = await api.users.CreateUser(pb.CreateUserRequest(user=bob, **only))
    assert (told.user.email, told.user.role, told.user.etag) == ("bob@acme.test", pb.ROLE_MEMBER, "")
    assert told.revision_token == b""
    change = pb.User(workspace_id=workspace, user_id="ann", display_name="Ann", etag=ann.etag)
    mask = FieldMask(paths=["display_name"])
    changed = await api.users.UpdateUser(pb.UpdateUserRequest(user=change, update_mask=mask, **only))
    assert (changed.user.display_name, changed.user.email) == ("Ann", "ann@acme.test")
    back = await api.users.UndeleteUser(pb.UndeleteUserRequest(workspace_id=workspace, user_id="eve", **only))
    assert not back.user.HasField("delete_time")
    purged = await api.users.PurgeUser(pb.PurgeUserRequest(workspace_id=workspace, user_id="eve", **only))
    assert purged.revision_token == b""

    bob.email = "Ann@acme.test"
    with taken(Reason.REASON_EMAIL_TAKEN):
        await api.users.CreateUser(pb.CreateUserRequest(user=bob, **only))
    with taken(Reason.REASON_USER_EXISTS):
        await api.users.CreateUser(
            pb.CreateUserRequest(user=pb.User(workspace_id=workspace, user_id="eve", email="new@acme.test"), **only)
        )
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        nowhere = pb.User(workspace_id="nowhere", email="new@acme.test")
        await api.users.CreateUser(pb.CreateUserRequest(user=nowhere, **only))
    change.etag = "0" * 16
    with lost():
        await api.users.UpdateUser(pb.UpdateUserRequest(user=change, update_mask=mask, **only))
    with last_owner():
        await api.users.DeleteUser(pb.DeleteUserRequest(workspace_id=workspace, user_id="ann", **only))
    with not_deleted():
        await api.users.PurgeUser(pb.PurgeUserRequest(workspace_id=workspace, user_id="ann", **only))
    with invalid("request_id"):
        only["request_id"] = "x" * 256
        await api.users.DeleteUser(pb.DeleteUserRequest(workspace_id=workspace, user_id="ann", **only))
    assert await state() == before


async def test_a_read_is_not_older_than_it_is_asked_to_be(api: Registry, workspace: str) -> None:
    ids: dict[str, Any] = {"workspace_id": workspace, "user_id": "ann"}
    made = await api.users.CreateUser(pb.CreateUserRequest(user=pb.User(email="ann@acme.test", **ids)))
    token = made.revision_token
    assert (await api.users.GetUser(pb.GetUserRequest(min_revision_token=token, **ids))).user == made.user
    assert await listed(api, workspace, min_revision_token=token) == ["ann"]
    now = revision_of(token, "token")
    assert now is not None
    ahead = Revision(now.epoch, now.number + 10**9).token()
    for asked in (
        api.users.GetUser(pb.GetUserRequest(min_revision_token=ahead, **ids)),
        listed(api, workspace, min_revision_token=ahead),
        api.users.BatchGetUsers(pb.BatchGetUsersRequest(workspace_id=workspace, user_ids=["ann"], min_revision_token=ahead)),
    ):
        with refused(grpc.StatusCode.UNAVAILABLE, Reason.REASON_REVISION_NOT_REACHED):
            await asked
    other = Revision(now.epoch - 1, 1).token()
    with refused(grpc.StatusCode.ABORTED, Reason.REASON_HISTORY_CHANGED):
        await api.users.GetUser(pb.GetUserRequest(min_revision_token=other, **ids))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_TOKEN, "min_revision_token"):
        await api.users.GetUser(pb.GetUserRequest(min_revision_token=b"x", **ids))
