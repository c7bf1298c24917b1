"""What turns use is held against the workspace's limits: in messages, in tokens, and in what the bill will say."""

import asyncio

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from tests.router.conftest import refused
from tests.router.test_whole_turn import House
from tests.router.test_whole_turn import house as house  # a fixture
from tests.waiting import until
from twofold.registry.v1 import agent_pb2, agent_pb2_grpc, workspace_pb2, workspace_pb2_grpc
from twofold.router.v1 import limit_pb2, limit_pb2_grpc

MESSAGES = workspace_pb2.LIMIT_KIND_WORKSPACE_DAY_MESSAGES
TOKENS = workspace_pb2.LIMIT_KIND_WORKSPACE_DAY_TOKENS
MICROS = workspace_pb2.LIMIT_KIND_WORKSPACE_DAY_MICROS


async def limited(house: House, **amounts: int) -> bytes:
    limits = [
        workspace_pb2.Limit(kind=workspace_pb2.LimitKind.Value(f"LIMIT_KIND_WORKSPACE_DAY_{name.upper()}"), amount=amount)
        for name, amount in amounts.items()
    ]
    changed = workspace_pb2.Workspace(
        workspace_id=house.workspace_id, settings=workspace_pb2.WorkspaceSettings(limits=limits)
    )
    stub = workspace_pb2_grpc.WorkspaceServiceStub(house.registry)
    request = workspace_pb2.UpdateWorkspaceRequest(workspace=changed, update_mask=FieldMask(paths=["settings.limits"]))
    return (await stub.UpdateWorkspace(request, timeout=10)).revision_token


async def priced(house: House, price: agent_pb2.AgentPrice) -> bytes:
    changed = agent_pb2.Agent(workspace_id=house.workspace_id, agent_id="agent", price=price)
    request = agent_pb2.UpdateAgentRequest(agent=changed, update_mask=FieldMask(paths=["price"]))
    return (await agent_pb2_grpc.AgentServiceStub(house.registry).UpdateAgent(request, timeout=10)).revision_token


async def used(house: House, token: bytes = b"") -> dict[int, int]:
    request = limit_pb2.GetLimitsRequest(workspace_id=house.workspace_id, min_revision_token=token)
    stub = limit_pb2_grpc.LimitServiceStub(house.client.channel)
    return {limit.kind: limit.used for limit in (await stub.GetLimits(request, timeout=10)).limits}


async def test_c7_what_a_turn_really_used_counts_in_messages_tokens_and_money_as_it_is_billed(house: House) -> None:
    ws, client = house.workspace_id, house.client
    await house.grant("ada")
    await priced(
        house,
        agent_pb2.AgentPrice(per_message_micros=500, per_1000_input_tokens_micros=3000, per_1000_output_tokens_micros=7000),
    )
    token = await limited(house, messages=100, tokens=1_000_000, micros=1_000_000_000)
    done = (await client.turn(ws, "My name is Ada.", thread_id="t", operation_id="op", min_revision_token=token)).completed
    bill = await house.usage()

    async def as_billed() -> bool:
        count = await used(house)
        return (count[MESSAGES], count[TOKENS], count[MICROS]) == (
            bill.messages,
            bill.input_tokens + bill.output_tokens,
            bill.costs[0].amount_micros,
        )

    assert (bill.messages, bill.input_tokens + bill.output_tokens) == (1, done.input_tokens + done.output_tokens)
    assert bill.costs[0].amount_micros > 500
    await until(as_billed, "settled behind the answer")
    await client.turn(ws, "My name is Ada.", thread_id="t", operation_id="op")
    assert await as_billed(), "a repeat counts nothing"


async def test_a_turn_beyond_the_days_money_is_refused_before_anything_is_kept(house: House) -> None:
    ws, client = house.workspace_id, house.client
    await house.grant("ada")
    await priced(house, agent_pb2.AgentPrice(per_message_micros=500))
    token = await limited(house, micros=500, messages=2)
    assert (await client.turn(ws, thread_id="t", min_revision_token=token)).completed.usage_recorded
    assert (await client.turn(ws, thread_id="t")).completed.usage_recorded, "what it costs is known afterwards"

    async def spent() -> bool:
        return (await used(house))[MICROS] == 1000

    await until(spent, "settled behind the answer")
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REASON_LIMIT_REACHED") as refusal:
        await asyncio.wait_for(client.turn(ws, thread_id="t"), 30)
    assert b"messages" in refusal.details.lower()
    assert len(await house.messages("t")) == 4
    assert (await used(house))[MESSAGES] == 2, "who is refused is not counted"
