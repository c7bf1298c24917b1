"""What the channels of the client do by themselves: retry UNAVAILABLE, say who calls, make writes repeatable."""

import uuid

import grpc
import pytest

from tests.client.conftest import Connect
from tests.client.fakes import Context, Turns, Users
from twofold import Twofold
from twofold.ids import new_id
from twofold.registry.v1.user_pb2 import CreateUserRequest, GetUserRequest, User
from twofold.router.v1.turn_pb2 import RunRequest
from twofold_chassis import refusals

DOWN = refusals.StoreUnavailable("Postgres does not answer")


async def test_a_service_that_is_unavailable_is_asked_again(connect: Connect) -> None:
    users = Users([DOWN, DOWN])
    client = await connect(users)
    await client.users.GetUser(GetUserRequest(user_id="u"))
    assert len(users.requests) == 3


async def test_it_is_asked_four_times_at_most(connect: Connect) -> None:
    users = Users([DOWN] * 10)
    client = await connect(users)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.users.GetUser(GetUserRequest(user_id="u"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(users.requests) == 4


@pytest.mark.parametrize(
    "refusal", [refusals.Busy("others write"), refusals.Overloaded("too much"), refusals.DeadlineExceeded("late")]
)
async def test_no_other_refusal_is_retried(connect: Connect, refusal: refusals.Refusal) -> None:
    users = Users([refusal])
    client = await connect(users)
    with pytest.raises(grpc.aio.AioRpcError):
        await client.users.GetUser(GetUserRequest(user_id="u"))
    assert len(users.requests) == 1


async def test_a_turn_is_never_run_again_by_itself(connect: Connect) -> None:
    turns = Turns([refusals.PeerUnavailable("memory does not answer")])  # type: ignore[abstract]  # only what is asked
    client = await connect(turns)
    with pytest.raises(grpc.aio.AioRpcError):
        await anext(aiter(client.turns.Run(RunRequest(message="hello"))))
    assert len(turns.requests) == 1


async def test_a_large_write_is_retried_as_well(connect: Connect) -> None:
    users = Users([DOWN])
    client = await connect(users)
    await client.users.CreateUser(CreateUserRequest(user=User(display_name="x" * 1_500_000)))
    assert len(users.requests) == 2


async def test_all_attempts_of_a_write_carry_one_request_id(connect: Connect) -> None:
    users = Users([DOWN, DOWN])
    client = await connect(users)
    request = CreateUserRequest(user=User(user_id="u"))
    await client.users.CreateUser(request)
    first, *others = [attempt.request_id for attempt in users.requests]
    assert uuid.UUID(first)
    assert set(others) == {first}
    assert not request.request_id, "the caller's request is left alone"


async def test_a_request_id_of_the_callers_is_kept(connect: Connect) -> None:
    users = Users()
    client = await connect(users)
    await client.users.CreateUser(CreateUserRequest(request_id="mine"))
    assert users.requests[0].request_id == "mine"


async def test_calls_and_streams_say_who_calls(connect: Connect) -> None:
    users, turns = Users(), Turns()  # type: ignore[abstract]
    client = await connect(users, turns, actor="support-bot")
    await client.users.GetUser(GetUserRequest())
    async for _ in client.turns.Run(RunRequest(message="hello")):
        pass
    assert users.metadata["twofold-actor"] == turns.metadata["twofold-actor"] == "support-bot"


async def test_a_call_may_say_it_on_behalf_of_somebody_else(connect: Connect) -> None:
    users = Users()
    client = await connect(users, actor="support-bot")
    await client.users.GetUser(GetUserRequest(), metadata=(("twofold-actor", "ada"),))
    assert users.metadata["twofold-actor"] == "ada"


async def test_a_service_that_is_never_called_need_not_be_there(connect: Connect) -> None:
    context = Context()
    await connect(context)
    async with Twofold(registry="127.0.0.1:1", memory="127.0.0.1:1", router="127.0.0.1:1"):
        pass


def test_new_ids_are_version_7_and_rise_with_time() -> None:
    ids = [uuid.UUID(new_id()) for _ in range(100)]
    assert {(one.version, one.variant) for one in ids} == {(7, uuid.RFC_4122)}
    assert [one.int >> 80 for one in ids] == sorted(one.int >> 80 for one in ids)
    assert len(set(ids)) == 100
