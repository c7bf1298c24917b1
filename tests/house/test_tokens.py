"""Tokens are good for what they were given for, and for nothing else."""

from typing import Any

import grpc
import pytest

from tests.house.conftest import House
from tests.house.examples import World
from twofold import refusals
from twofold.errors.v1.reason_pb2 import Reason
from twofold.memory.v1 import conversation_pb2, message_pb2
from twofold.registry.v1 import permission_pb2, user_pb2


async def page_of_users(house: House, workspace_id: str, page_token: str = "") -> user_pb2.ListUsersResponse:
    return await house.client.users.ListUsers(
        user_pb2.ListUsersRequest(workspace_id=workspace_id, page_size=1, page_token=page_token)
    )


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return caught.value


async def test_a_page_token_belongs_to_its_query(house: House, world: World) -> None:
    grace = user_pb2.User(workspace_id=world.workspace_id, user_id="grace", email="grace@example.com")
    await house.client.users.CreateUser(user_pb2.CreateUserRequest(user=grace))
    first = await page_of_users(house, world.workspace_id)
    second = await page_of_users(house, world.workspace_id, first.next_page_token)
    assert [user.user_id for page in (first, second) for user in page.users] == ["ada", "grace"]
    error = await refused(page_of_users(house, f"{world.workspace_id}-other", first.next_page_token))
    assert (refusals.reason(error), refusals.field(error)) == (Reason.REASON_INVALID_PAGE_TOKEN, "page_token")


async def test_a_thread_token_belongs_to_its_thread(house: House, world: World) -> None:
    read = conversation_pb2.ReadWindowRequest(workspace_id=world.workspace_id, thread_id=world.thread_id)
    token = (await house.client.conversations.ReadWindow(read)).thread_token
    read.thread_id = "another-thread"
    read.thread_token, read.read_level = token, message_pb2.ReadLevel.READ_LEVEL_AT_LEAST
    error = await refused(house.client.conversations.ReadWindow(read))
    assert (refusals.reason(error), refusals.field(error)) == (Reason.REASON_INVALID_TOKEN, "thread_token")


async def test_a_thread_token_is_no_revision_token(house: House, world: World) -> None:
    read = conversation_pb2.ReadWindowRequest(workspace_id=world.workspace_id, thread_id=world.thread_id)
    token = (await house.client.conversations.ReadWindow(read)).thread_token
    check = permission_pb2.CheckRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, agent_id=world.agent_id, min_revision_token=token
    )
    error = await refused(house.client.permissions.Check(check))
    assert (refusals.reason(error), refusals.field(error)) == (Reason.REASON_INVALID_TOKEN, "min_revision_token")


async def test_a_damaged_token_is_none(house: House, world: World) -> None:
    answer = await house.client.users.GetUser(
        user_pb2.GetUserRequest(workspace_id=world.workspace_id, user_id=world.user_id)
    )
    damaged = answer.revision_token[:-1] + bytes([answer.revision_token[-1] ^ 1])
    check = permission_pb2.CheckRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, agent_id=world.agent_id, min_revision_token=damaged
    )
    error = await refused(house.client.permissions.Check(check))
    assert (refusals.reason(error), refusals.field(error)) == (Reason.REASON_INVALID_TOKEN, "min_revision_token")
