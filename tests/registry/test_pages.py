"""Pages of every listing: complete, in order, bound to their query, and no larger than clients take."""

import base64
import json
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests.registry.stubs import Connection, Registry, invalid, refused
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
    for number in range(3):
        await api.make_workspace(f"{workspace}-{number}", plan=workspace.lower())
    for user in IDS[:3]:
        for agent in IDS[:3]:
            await api.grant(workspace, user, agent)
    return workspace


def listing(api: Registry, rpc: str, workspace: str) -> Ask:
    requests: dict[str, tuple[Any, Any]] = {
        "ListWorkspaces": (api.workspaces.ListWorkspaces, workspace_pb2.ListWorkspacesRequest(plan=workspace.lower())),
        "ListUsers": (api.users.ListUsers, user_pb2.ListUsersRequest(workspace_id=workspace)),
        "ListAgents": (api.agents.ListAgents, agent_pb2.ListAgentsRequest(workspace_id=workspace)),
        "ListGrants": (api.permissions.ListGrants, permission_pb2.ListGrantsRequest(workspace_id=workspace)),
        "ListAuditEntries": (api.audit.ListAuditEntries, audit_pb2.ListAuditEntriesRequest(workspace_id=workspace)),
    }
    method, request = requests[rpc]

    async def ask(size: int = 0, token: str = "", **values: Any) -> Any:
        request.page_size, request.page_token = size, token
        for name, value in values.items():
            setattr(request, name, value)
        return await method(request)

    return ask


def items(answer: Any) -> list[Any]:
    return list(next(value for field, value in answer.ListFields() if field.name != "next_page_token"))


async def walk(ask: Ask, size: int, **values: Any) -> list[Any]:
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


ORDERS = ("id", "id desc", "create_time", "create_time desc")
RESOURCES = ("ListUsers", "ListAgents")


def id_of(resource: Any) -> str:
    return str(getattr(resource, "user_id", "") or getattr(resource, "agent_id", "") or resource.workspace_id)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rpc", RESOURCES)
async def test_each_order_joins_to_the_whole(api: Registry, furnished: str, rpc: str, order: str) -> None:
    ask = listing(api, rpc, furnished)
    ids = sorted(IDS, key=str.encode) if order.startswith("id") else list(reversed(IDS))  # as they were made
    if order.endswith("desc"):
        ids.reverse()
    for size in (1, 2, 4, 500):
        assert [id_of(found) for found in await walk(ask, size, order_by=order)] == ids


@pytest.mark.parametrize("order", ORDERS)
async def test_workspaces_are_listed_in_each_order(api: Registry, workspace_id: str, order: str) -> None:
    plan = workspace_id.lower()
    ids = [f"{workspace_id}-{name}" for name in ("c", "a", "b")]
    for each in ids:
        await api.make_workspace(each, plan=plan)
    expected = sorted(ids) if order.startswith("id") else ids
    if order.endswith("desc"):
        expected = expected[::-1]
    ask = listing(api, "ListWorkspaces", "")
    for size in (1, 2, 500):
        assert [id_of(found) for found in await walk(ask, size, order_by=order, plan=plan)] == expected


@pytest.mark.parametrize("order", ORDERS)
async def test_those_of_one_time_are_all_listed(api: Registry, owner: Connection, furnished: str, order: str) -> None:
    await owner.execute("UPDATE registry.users SET created_at = now() WHERE workspace_id = $1", furnished)
    for size in (1, 2):
        found = [id_of(user) for user in await walk(listing(api, "ListUsers", furnished), size, order_by=order)]
        assert found == sorted(IDS, key=str.encode, reverse=order.endswith("desc"))


@pytest.mark.parametrize("order", ["ID", "id asc", "display_name", "id,create_time", "create_time; DROP TABLE"])
@pytest.mark.parametrize("rpc", ["ListWorkspaces", *RESOURCES])
async def test_an_order_is_one_of_four(api: Registry, workspace: str, rpc: str, order: str) -> None:
    with invalid("order_by"):
        await listing(api, rpc, workspace)(order_by=order)


async def test_a_token_belongs_to_its_filters_and_its_order(api: Registry, furnished: str) -> None:
    ask = listing(api, "ListUsers", furnished)
    token = (await ask(1)).next_page_token
    changes: list[dict[str, Any]] = [
        {"order_by": "id desc"}, {"order_by": "create_time"}, {"role": user_pb2.ROLE_MEMBER}, {"email": "u1@acme.test"},
        {"state": user_pb2.USER_STATE_ACTIVE}, {"identity_id": "x"}, {"show_deleted": True},
    ]  # fmt: skip
    for change in changes:
        with bad_token():
            await listing(api, "ListUsers", furnished)(1, token, **change)
    assert (await ask(1, token)).users


async def test_a_place_in_time_that_is_none_is_damage(api: Registry, furnished: str) -> None:
    ask = listing(api, "ListUsers", furnished)
    token = (await ask(1, order_by="create_time")).next_page_token
    for cursor in (f'[{2**62},"a"]', '[-1,"a"]', '["a","a"]', "[1]", '[1,"a",1]', '[1.5,"a"]', "[1,2]"):
        with bad_token():
            await ask(1, forged(token, cursor), order_by="create_time")


async def _churn(api: Registry, workspace: str, rpc: str, number: int) -> None:
    """Between two pages: one comes and one goes, before and behind whatever place the page ended at."""
    names = [f"{head}{number}" for head in ("!", "aa", "zz", "\U0001f680")]
    for name in names:
        if rpc == "ListUsers":
            await api.make_user(workspace, name, email=f"{number}{names.index(name)}@churn.test")
        else:
            await api.make_agent(workspace, name)
    for name in names[::2]:
        if rpc == "ListUsers":
            await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=workspace, user_id=name))
        else:
            await api.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(workspace_id=workspace, agent_id=name))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rpc", RESOURCES)
async def test_pages_neither_repeat_nor_skip_what_is_there_all_the_time(
    api: Registry, furnished: str, rpc: str, order: str
) -> None:
    ask = listing(api, rpc, furnished)
    found, token = [], ""
    for number in range(100):
        answer = await ask(2, token, order_by=order)
        found += [id_of(resource) for resource in items(answer)]
        token = answer.next_page_token
        if not token:
            break
        if number < 4:  # for ever, the listing by time would never end
            await _churn(api, furnished, rpc, number)
    assert len(found) == len(set(found))
    expected = sorted(IDS, key=str.encode) if order.startswith("id") else list(reversed(IDS))
    assert [each for each in found if each in IDS] == (expected[::-1] if order.endswith("desc") else expected)


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
