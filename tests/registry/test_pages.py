"""Pages of every listing: complete, in order, bound to their query, and no larger than clients take."""

import base64
import json
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests.registry.stubs import Registry, invalid, refused
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, audit_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold_chassis import fields

# Bytes order them, not a language.
IDS = ["B", "a", "a/b", "aa", "b", "z", "ä", "日本", "\U0001f600"]
LISTS = ("ListWorkspaces", "ListUsers", "ListAgents", "ListGrants", "ListAuditEntries")
Ask = Callable[..., Awaitable[Any]]


@pytest.fixture
async def furnished(api: Registry, workspace: str) -> str:
    for name in reversed(IDS):
        await api.make_user(workspace, name, email=f"u{IDS.index(name)}@acme.test")
        await api.make_agent(workspace, name)
    for user in IDS[:3]:
        for agent in IDS[:3]:
            await api.grant(workspace, user, agent)
    return workspace


def listing(api: Registry, rpc: str, workspace: str) -> Ask:
    requests: dict[str, tuple[Any, Any]] = {
        "ListWorkspaces": (api.workspaces.ListWorkspaces, workspace_pb2.ListWorkspacesRequest()),
        "ListUsers": (api.users.ListUsers, user_pb2.ListUsersRequest(workspace_id=workspace)),
        "ListAgents": (api.agents.ListAgents, agent_pb2.ListAgentsRequest(workspace_id=workspace)),
        "ListGrants": (api.permissions.ListGrants, permission_pb2.ListGrantsRequest(workspace_id=workspace)),
        "ListAuditEntries": (api.audit.ListAuditEntries, audit_pb2.ListAuditEntriesRequest(workspace_id=workspace)),
    }
    method, request = requests[rpc]

    async def ask(size: int = 0, token: str = "", **values: str) -> Any:
        request.page_size, request.page_token = size, token
        for name, value in values.items():
            setattr(request, name, value)
        return await method(request)

    return ask


def items(answer: Any) -> list[Any]:
    return list(next(value for field, value in answer.ListFields() if field.name != "next_page_token"))


async def walk(ask: Ask, size: int, **values: str) -> list[Any]:
    found, token = [], ""
    while True:
        answer = await ask(size, token, **values)
        assert 1 <= len(items(answer)) <= size
        found += items(answer)
        assert len(found) < 1000, "the pages never end"
        token = answer.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("rpc", LISTS)
async def test_pages_of_any_size_join_to_the_whole(api: Registry, furnished: str, rpc: str) -> None:
    ask = listing(api, rpc, furnished)
    whole = items(await ask(500))
    for size in (1, 2, 3, len(whole), 500):
        assert await walk(ask, size) == whole


async def test_ids_are_in_the_order_of_their_bytes(api: Registry, furnished: str) -> None:
    users = await walk(listing(api, "ListUsers", furnished), 4)
    assert [user.user_id for user in users] == sorted(IDS, key=str.encode)
    agents = await walk(listing(api, "ListAgents", furnished), 4)
    assert [agent.agent_id for agent in agents] == sorted(IDS, key=str.encode)
    grants = await walk(listing(api, "ListGrants", furnished), 4)
    assert [(grant.user_id, grant.agent_id) for grant in grants] == [(user, agent) for user in IDS[:3] for agent in IDS[:3]]
    one = [grant.user_id for grant in await walk(listing(api, "ListGrants", furnished), 2, agent_id="a")]
    assert one == IDS[:3]
    one = [grant.agent_id for grant in await walk(listing(api, "ListGrants", furnished), 2, user_id="a")]
    assert one == IDS[:3]


async def test_pages_stay_whole_while_others_write(api: Registry, furnished: str) -> None:
    ask = listing(api, "ListUsers", furnished)
    first = await ask(4)
    await api.make_user(furnished, "A")  # before the page
    await api.make_user(furnished, "zz")  # behind it
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=furnished, user_id=first.users[-1].user_id))
    rest = await ask(500, first.next_page_token)
    assert [user.user_id for user in rest.users] == ["b", "z", "zz", "ä", "日本", "\U0001f600"]


@pytest.mark.parametrize("rpc", LISTS)
@pytest.mark.parametrize("size", [-1, 501, 2**31 - 1])
async def test_a_page_has_one_to_five_hundred_entries(api: Registry, workspace: str, rpc: str, size: int) -> None:
    with invalid("page_size"):
        await listing(api, rpc, workspace)(size)


def bad_token() -> Any:
    return refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_PAGE_TOKEN, "page_token")


async def test_a_token_belongs_to_its_query(api: Registry, furnished: str) -> None:
    other = (await api.make_workspace("")).workspace_id
    tokens = {rpc: (await listing(api, rpc, furnished)(1)).next_page_token for rpc in LISTS}
    for rpc in LISTS:
        for foreign in LISTS:
            if foreign != rpc:
                with bad_token():
                    await listing(api, rpc, furnished)(1, tokens[foreign])
    for rpc in LISTS[1:]:
        with bad_token():
            await listing(api, rpc, other)(1, tokens[rpc])
    for values in ({"user_id": "a"}, {"agent_id": "a"}):
        with bad_token():
            await listing(api, "ListGrants", furnished)(1, tokens["ListGrants"], **values)
    with bad_token():
        await listing(api, "ListAuditEntries", furnished)(1, tokens["ListAuditEntries"], resource_kind="user")


def forged(token: str, cursor: str) -> str:
    """A token with a right checksum and right query, made by somebody who has read the code."""
    content = fields.unseal("page", base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), "t")
    fingerprint = json.loads(content)[0]
    body = b"page." + f"[{fingerprint},{cursor}]".encode("utf-8", "surrogatepass")
    return base64.urlsafe_b64encode(zlib.crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")


@pytest.mark.parametrize("rpc", LISTS)
async def test_damaged_and_forged_tokens_are_refused_by_name(api: Registry, furnished: str, rpc: str) -> None:
    await api.make_workspace("")
    ask = listing(api, rpc, furnished)
    token = (await ask(1)).next_page_token
    damaged = ["x", "=", "ä", "\0", token[:-2], token[1:], token + "AAAA", "A" * 5000, token.swapcase()]
    cursors = [
        "5", "null", "{}", "[]", '["a"', '[""]', '["a","b","c"]', "[[1]]", "[1]", "[true,false]", "[-1,0]", "[1.5,0]",
        '["\\u0000","a"]', '["\\u0000"]', '["\\ud800"]', '["\\ud800","a"]', "[1,9223372036854775808]", "[1e999,0]",
        '["' + "x" * 256 + '"]', "[" * 900 + "]" * 900, "1" * 2000,
    ]  # fmt: skip
    for wrong in (*damaged, *(forged(token, cursor) for cursor in cursors)):
        with bad_token():
            await ask(1, wrong)


async def test_a_page_ends_before_it_outgrows_a_message(api: Registry, workspace: str) -> None:
    settings = agent_pb2.AgentSettings(instructions="x" * 64 * 1024)
    for index in range(70):
        await api.make_agent(workspace, f"agent-{index:02}", settings=settings)
    first = await listing(api, "ListAgents", workspace)(500)
    assert first.next_page_token
    assert first.ByteSize() < 4 * 1024 * 1024
    assert len(await walk(listing(api, "ListAgents", workspace), 500)) == 70
    assert len(await walk(listing(api, "ListAuditEntries", workspace), 500)) == 71
