"""The life of users, in any order of calls, against a small model: what is refused and why, what is kept, what is told."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.registry.stubs import Connection, Registry
from twofold import refusals
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import user_pb2 as pb

EMAILS = ("one@acme.test", "two@acme.test")
ROLES = (pb.ROLE_OWNER, pb.ROLE_MEMBER, pb.ROLE_MEMBER, pb.ROLE_MEMBER)


class Step(NamedTuple):
    """One call. `etag`: none, the current one, or one that has passed; `repeat`: its request id, if it has one."""

    verb: str
    user_id: str
    email: str
    role: pb.Role.ValueType
    etag: str
    repeat: str
    validate_only: bool


STEPS = some.lists(
    some.builds(
        Step,
        verb=some.sampled_from(["Create", "Update", "Delete", "Delete", "Undelete", "Purge"]),
        user_id=some.sampled_from(["ann", "bob"]),
        email=some.sampled_from(EMAILS),
        role=some.sampled_from(ROLES),
        etag=some.sampled_from(["", "", "", "current", "current", "passed"]),
        repeat=some.sampled_from(["", "", "", "r1", "r2"]),
        validate_only=some.sampled_from([False, False, False, True]),
    ),
    min_size=10,
    max_size=30,
)


@dataclass(frozen=True)
class Life:
    """A user, as the model knows it."""

    email: str
    role: pb.Role.ValueType
    stage: str = "lives"
    etags: tuple[str, ...] = ()

    @property
    def runs_workspace(self) -> bool:
        return self.stage == "lives" and self.role == pb.ROLE_OWNER


@dataclass
class Model:
    """All users of a workspace, and the first answers."""

    users: dict[str, Life] = field(default_factory=dict)
    answers: dict[str, tuple[tuple[str, bytes], bytes]] = field(default_factory=dict)
    changes: int = 0

    def expected(self, step: Step) -> str:
        """Why the step is refused; empty if it is not."""
        life = self.users.get(step.user_id)
        if step.verb == "Create":
            if life is not None:
                return "REASON_USER_EXISTS"
            return "REASON_EMAIL_TAKEN" if self._taken(step.email, step.user_id) else ""
        may_be_deleted = step.verb in ("Undelete", "Purge")
        if life is None or life.stage == "purged" or (life.stage == "deleted" and not may_be_deleted):
            return "REASON_USER_UNKNOWN"
        if step.etag == "passed":
            return "REASON_ETAG_MISMATCH"
        if may_be_deleted and life.stage != "deleted":
            return "REASON_NOT_DELETED"
        loses_owner = step.verb == "Delete" or (step.verb == "Update" and step.role != pb.ROLE_OWNER)
        if loses_owner and life.runs_workspace and not self._others_run(step.user_id):
            return "REASON_LAST_OWNER"
        email = {"Update": step.email, "Undelete": life.email}.get(step.verb)
        return "REASON_EMAIL_TAKEN" if email and self._taken(email, step.user_id) else ""

    def apply(self, step: Step) -> None:
        stage = {"Delete": "deleted", "Purge": "purged"}.get(step.verb, "lives")
        life = self.users.get(step.user_id, Life(step.email, step.role))
        if step.verb == "Update":
            life = replace(life, email=step.email, role=step.role)
        self.users[step.user_id] = replace(life, stage=stage)
        self.changes += 1

    def _taken(self, email: str, user_id: str) -> bool:
        return any(life.stage == "lives" and life.email == email for each, life in self.users.items() if each != user_id)

    def _others_run(self, user_id: str) -> bool:
        return any(life.runs_workspace for each, life in self.users.items() if each != user_id)


def request_of(workspace: str, step: Step, life: Life | None) -> Any:
    etags = life.etags if life else ()
    etag = {"": "", "current": etags[-1] if etags else "", "passed": "0" * 16}[step.etag]
    common: dict[str, Any] = {"request_id": step.repeat, "validate_only": step.validate_only}
    key: dict[str, Any] = {"workspace_id": workspace, "user_id": step.user_id}
    if step.verb == "Create":
        return pb.CreateUserRequest(user=pb.User(email=step.email, role=step.role, **key), **common)
    if step.verb == "Update":
        user = pb.User(email=step.email, role=step.role, etag=etag, **key)
        return pb.UpdateUserRequest(user=user, update_mask=FieldMask(paths=["email", "role"]), **common)
    return getattr(pb, f"{step.verb}UserRequest")(etag=etag, **key, **common)


async def outcome(api: Registry, verb: str, request: Any) -> Message | str:
    try:
        answer: Message = await getattr(api.users, f"{verb}User")(request)
    except grpc.aio.AioRpcError as error:
        return Reason.Name(refusals.reason(error))
    return answer


async def take(api: Registry, workspace: str, model: Model, step: Step) -> None:
    """Makes one call, and compares what came of it."""
    request = request_of(workspace, step, model.users.get(step.user_id))
    body = request.SerializeToString(deterministic=True)
    found = await outcome(api, step.verb, request)
    if step.repeat in model.answers and not step.validate_only:
        first, answer = model.answers[step.repeat]
        if first != (step.verb, body):  # two rpcs may have the same bytes
            assert found == "REASON_REQUEST_REUSED"
        else:
            assert isinstance(found, Message)
            assert found.SerializeToString() == answer
        return
    assert (found if isinstance(found, str) else "") == model.expected(step)
    if isinstance(found, str):
        return
    told: Any = found
    if step.validate_only:
        assert step.verb == "Purge" or told.user.etag == ""
        return
    model.apply(step)
    if step.repeat:
        model.answers[step.repeat] = (step.verb, body), told.SerializeToString()
    if step.verb != "Purge":
        life = model.users[step.user_id]
        assert told.user.etag not in ("", *life.etags)
        model.users[step.user_id] = replace(life, etags=(*life.etags, told.user.etag))


async def kept(api: Registry, workspace: str, *, show_deleted: bool) -> dict[str, tuple[str, int]]:
    request = pb.ListUsersRequest(workspace_id=workspace, show_deleted=show_deleted)
    users = (await api.users.ListUsers(request)).users
    assert all(user.HasField("delete_time") == user.HasField("purge_time") for user in users)
    return {user.user_id: (user.email, user.role) for user in users if show_deleted or not user.HasField("delete_time")}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_users_live_as_the_model_says(api: Registry, owner: Connection, steps: list[Step]) -> None:
    workspace = (await api.make_workspace("")).workspace_id
    model = Model()
    for step in steps:
        await take(api, workspace, model, step)
    for show_deleted, stages in ((False, {"lives"}), (True, {"lives", "deleted"})):
        expected = {each: (life.email, life.role) for each, life in model.users.items() if life.stage in stages}
        assert await kept(api, workspace, show_deleted=show_deleted) == expected
    entries = await api.trail(workspace, resource_kind="user")
    told = await owner.fetchval("SELECT count(*) FROM registry.changes WHERE workspace_id = $1 AND kind = 'user'", workspace)
    assert len(entries) == told == model.changes
    left = await owner.fetch("SELECT * FROM registry.users WHERE workspace_id = $1 AND purged_at IS NOT NULL", workspace)
    assert {row["user_id"] for row in left} == {each for each, life in model.users.items() if life.stage == "purged"}
    assert all((row["email"], row["identity_id"], row["display_name"]) == ("", "", "") for row in left)
