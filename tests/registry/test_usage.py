import asyncio
import hashlib
import itertools
import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from tests.registry.stubs import Connection, Registry, invalid, taken, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import usage_pb2 as pb
from twofold.registry.v1 import workspace_pb2
from twofold_chassis import fields
from twofold_registry.usage import Event

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
START, END = Timestamp(seconds=0), fields.timestamp(datetime(2200, 1, 1, tzinfo=UTC))


def event(event_id: str, **values: object) -> pb.UsageEvent:
    given = {"user_id": "ann", "agent_id": "helper", "event_time": fields.timestamp(NOON), "messages": 1, **values}
    return pb.UsageEvent(event_id=event_id, **given)  # type: ignore[arg-type]


async def record(api: Registry, workspace_id: str, *events: pb.UsageEvent) -> list[bool]:
    request = pb.RecordUsageRequest(workspace_id=workspace_id, events=events)
    return list((await api.usage.RecordUsage(request)).duplicates)


async def usage(
    api: Registry, workspace_id: str, start: Timestamp = START, end: Timestamp = END, user_id: str = "", agent_id: str = ""
) -> pb.GetUsageResponse:
    request = pb.GetUsageRequest(
        workspace_id=workspace_id, start_time=start, end_time=end, user_id=user_id, agent_id=agent_id
    )
    return await api.usage.GetUsage(request)


async def test_events_resent_one_to_five_times_sum_exactly(api: Registry, workspace: str) -> None:
    chance = random.Random(7)
    events = [
        event(f"op/{index}", messages=chance.randrange(3), input_tokens=chance.randrange(10**6), output_tokens=index)
        for index in range(300)
    ]
    sent = list(itertools.chain(*([each] * chance.randint(1, 5) for each in events)))
    chance.shuffle(sent)
    batches = [sent[start : start + 60] for start in range(0, len(sent), 60)]
    answers = await asyncio.gather(*(record(api, workspace, *batch) for batch in batches))
    new = list(itertools.chain(*answers)).count(False)
    totals = await usage(api, workspace)
    assert new == len(events)
    assert totals == pb.GetUsageResponse(
        events=len(events),
        messages=sum(each.messages for each in events),
        input_tokens=sum(each.input_tokens for each in events),
        output_tokens=sum(each.output_tokens for each in events),
    )


async def test_each_event_is_told_whether_it_was_there(api: Registry, workspace: str) -> None:
    assert await record(api, workspace, event("a"), event("b"), event("a")) == [False, False, True]
    assert await record(api, workspace, event("c"), event("b")) == [False, True]
    assert (await usage(api, workspace)).events == 3


@pytest.mark.parametrize(
    "other",
    [
        {"user_id": "bob"},
        {"agent_id": "other"},
        {"thread_id": "t"},
        {"messages": 2},
        {"input_tokens": 1},
        {"output_tokens": 1},
        {"event_time": fields.timestamp(NOON + timedelta(microseconds=1))},
    ],
)
async def test_an_event_id_with_another_body_is_refused_and_nothing_is_recorded(
    api: Registry, workspace: str, other: dict[str, object]
) -> None:
    with taken(Reason.REASON_EVENT_REUSED):
        await record(api, workspace, event("new"), event("a"), event("a", **other))
    assert (await usage(api, workspace)).events == 0
    await record(api, workspace, event("a"))
    with taken(Reason.REASON_EVENT_REUSED):
        await record(api, workspace, event("new"), event("a", **other), event("newer"))
    assert (await usage(api, workspace)).events == 1


async def test_event_ids_are_of_one_workspace(api: Registry, workspace: str) -> None:
    other = (await api.make_workspace("")).workspace_id
    await record(api, workspace, event("a"))
    assert await record(api, other, event("a", messages=5)) == [False]
    assert (await usage(api, workspace)).messages == 1


async def test_sums_are_of_a_span_and_of_who_is_asked_for(api: Registry, workspace: str) -> None:
    await record(
        api,
        workspace,
        event("1", messages=1),
        event("2", messages=2, user_id="bob"),
        event("3", messages=4, agent_id="other"),
        event("4", messages=8, event_time=fields.timestamp(NOON + timedelta(hours=1))),
    )
    noon, one = fields.timestamp(NOON), fields.timestamp(NOON + timedelta(hours=1))
    assert (await usage(api, workspace)).messages == 15
    assert (await usage(api, workspace, noon, one)).messages == 7
    assert (await usage(api, workspace, one)).messages == 8
    assert (await usage(api, workspace, user_id="bob")).messages == 2
    assert (await usage(api, workspace, user_id="ann", agent_id="other")).messages == 4
    assert await usage(api, workspace, user_id="nobody") == pb.GetUsageResponse()


async def test_usage_neither_moves_the_history_nor_is_audited(api: Registry, owner: Connection, workspace: str) -> None:
    head = "SELECT revision FROM registry.registry_head"
    before = await owner.fetchval(head), len(await api.trail(workspace))
    await record(api, workspace, event("a"))
    assert (await owner.fetchval(head), len(await api.trail(workspace))) == before


async def test_usage_is_recorded_while_a_change_holds_the_history(api: Registry, owner: Connection, workspace: str) -> None:
    async with owner.transaction():
        await owner.execute("UPDATE registry.registry_head SET revision = revision")
        await owner.execute("SELECT FROM registry.workspaces WHERE workspace_id = $1 FOR NO KEY UPDATE", workspace)
        assert await record(api, workspace, event("a")) == [False]


async def test_sums_too_large_for_the_answer_are_refused_and_not_wrong(
    api: Registry, owner: Connection, workspace: str
) -> None:
    events = """
        INSERT INTO registry.usage_events
        SELECT $1, n::text, 'ann', 'helper', '', 'turn', '2026-03-01', 0, 9223372036854775807, 0,
            '2026-03-01', 'USD', 0, 0, 0, 0
        FROM generate_series(1, 2) AS n
    """
    sums = """
        INSERT INTO registry.usage_sums
        SELECT $1, '2026-03-01', 'helper', n::text, 'turn', '2026-03-01', 'USD', 0, 0, 0, 1, 0, 9223372036854775807, 0, 0
        FROM generate_series(1, 2) AS n
    """
    for statement, start in ((events, Timestamp(seconds=1)), (sums, START)):
        await owner.execute(statement, workspace)
        with invalid("end_time"):
            await usage(api, workspace, start)


async def test_unknown_workspaces_are_named(api: Registry) -> None:
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await record(api, "nowhere", event("b"))
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await usage(api, "nowhere")


async def test_what_was_under_way_when_its_workspace_was_deleted_counts(api: Registry, workspace: str) -> None:
    await record(api, workspace, event("a"))
    await api.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(workspace_id=workspace))
    assert await record(api, workspace, event("a"), event("b")) == [True, False]
    assert (await usage(api, workspace)).events == 2


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"event_id": ""}, "event_id"),
        ({"event_id": "x" * 256}, "event_id"),
        ({"user_id": ""}, "user_id"),
        ({"agent_id": "a\0"}, "agent_id"),
        ({"thread_id": "x" * 256}, "thread_id"),
        ({"event_time": None}, "event_time"),
        ({"event_time": fields.timestamp(datetime(1999, 12, 31, tzinfo=UTC))}, "event_time"),
        ({"event_time": END}, "event_time"),
        ({"event_time": Timestamp(seconds=2**61)}, "event_time"),
        ({"messages": -1}, "messages"),
        ({"messages": 10**9 + 1}, "messages"),
        ({"input_tokens": 10**12 + 1}, "input_tokens"),
        ({"output_tokens": -(2**63)}, "output_tokens"),
    ],
)
async def test_bad_events_are_refused_by_field(api: Registry, workspace: str, values: dict[str, object], field: str) -> None:
    wrong = event(**{"event_id": "b", **values})  # type: ignore[arg-type]
    with invalid(f"events[1].{field}"):
        await record(api, workspace, event("a"), wrong)
    assert (await usage(api, workspace)).events == 0


async def test_the_future_begins_after_an_hour(api: Registry, workspace: str) -> None:
    now = datetime.now(UTC)
    assert await record(api, workspace, event("a", event_time=fields.timestamp(now + timedelta(minutes=59)))) == [False]
    with invalid("events[0].event_time"):
        await record(api, workspace, event("b", event_time=fields.timestamp(now + timedelta(minutes=61))))


async def test_a_batch_has_one_to_five_hundred_events(api: Registry, workspace: str) -> None:
    with invalid("events"):
        await record(api, workspace)
    with invalid("events"):
        await record(api, workspace, *(event(str(index)) for index in range(501)))
    assert await record(api, workspace, *(event(str(index)) for index in range(500))) == [False] * 500


async def test_a_span_has_a_begin_and_a_later_end(api: Registry, workspace: str) -> None:
    with invalid("start_time"):
        await api.usage.GetUsage(pb.GetUsageRequest(workspace_id=workspace, end_time=END))
    with invalid("end_time"):
        await api.usage.GetUsage(pb.GetUsageRequest(workspace_id=workspace, start_time=START))
    with invalid("end_time"):
        await usage(api, workspace, start=END, end=END)


_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


@given(_TEXT, _TEXT, _TEXT, st.datetimes(timezones=st.just(UTC)), st.integers(0, 10**12))
def test_the_hash_of_a_body_is_what_it_always_was(
    user_id: str, agent_id: str, thread_id: str, at: datetime, count: int
) -> None:
    """It is compared for ever, also with those of events that were recorded before there were kinds."""
    body = [user_id, agent_id, thread_id, at.isoformat(timespec="microseconds"), 1, count, 0]
    turn = Event("id", user_id, agent_id, thread_id, "turn", at, 1, count, 0)
    assert turn.body_hash() == hashlib.sha256(json.dumps(body).encode()).digest()
    tool = turn._replace(kind="tool")
    assert tool.body_hash() == hashlib.sha256(json.dumps([*body, "tool"]).encode()).digest()
