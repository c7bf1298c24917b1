"""Reports on usage: by whom, for what, when; windows for routers; streams of batches."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.registry.billing import Books, agreed, event, middle_of, months_ago, owed
from tests.registry.stubs import Connection, Registry, invalid, refused, settings_of, taken, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import usage_pb2 as pb
from twofold.registry.v1.usage_pb2_grpc import UsageServiceStub
from twofold_chassis import fields
from twofold_chassis.settings import DatabaseSettings
from twofold_registry import months
from twofold_registry.app import registry
from twofold_registry.store import usage as store

MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
def books(api: Registry, workspace: str) -> Books:
    return Books(api, workspace)


async def grouped(
    books: Books,
    start: datetime,
    end: datetime,
    shift: int = 0,
    group_by: pb.UsageGroup.ValueType = pb.USAGE_GROUP_AGENT,
    page_size: int = 2,
    only: Mapping[str, str] | None = None,
) -> dict[str, pb.GroupedUsage]:
    """All groups, page by page; with a `shift` of some microseconds from the events and not from the sums of months."""
    request = pb.QueryUsageRequest(
        workspace_id=books.workspace_id,
        start_time=fields.timestamp(start + shift * MICROSECOND),
        end_time=fields.timestamp(end + shift * MICROSECOND),
        group_by=group_by,
        page_size=page_size,
        **(only or {}),  # type: ignore[arg-type]
    )
    found: list[pb.GroupedUsage] = []
    while True:
        answer = await books.api.usage.QueryUsage(request)
        found += answer.groups
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    names = [group.group for group in found]
    assert names == sorted(set(names))
    return {group.group: group for group in found}


async def furnish(books: Books) -> None:
    await books.make_agent("one", per_message_micros=5)
    await books.make_agent("two", per_message_micros=7, currency="EUR")
    for count in range(3):
        at = middle_of(months_ago(count))
        await books.record(
            *(
                event(
                    f"{count}-{number}/0",
                    at - timedelta(hours=7 * number),
                    agent_id=("one", "two")[number % 2],
                    user_id=f"u{number % 3}",
                    kind=("turn", "tool", "a.b-c_d")[number % 3],
                    input_tokens=number,
                )
                for number in range(10)
            )
        )


async def test_groups_from_the_sums_and_from_the_events_are_the_same(books: Books) -> None:
    await furnish(books)
    start, end = months.begin_of(months_ago(3)), months.begin_of(months.after(months_ago(0)))
    for by in (pb.USAGE_GROUP_USER, pb.USAGE_GROUP_AGENT, pb.USAGE_GROUP_KIND, pb.USAGE_GROUP_MONTH):
        for only, events in (
            ({}, 30),
            ({"user_id": "u1"}, 9),
            ({"agent_id": "two"}, 15),
            ({"kind": "tool", "user_id": "u1"}, 9),
        ):
            kept = await grouped(books, start, end, 0, by, only=only)
            counted = await grouped(books, start, end, 1, by, only=only)
            assert kept == counted
            assert sum(group.events for group in kept.values()) == events
    agents = await grouped(books, start, end)
    assert {name: owed(group.costs) for name, group in agents.items()} == {"one": {"USD": 75}, "two": {"EUR": 105}}


async def test_days_are_those_of_utc(books: Books) -> None:
    midnight = months.begin_of(months_ago(1)) + timedelta(days=9)
    await books.record(event("a/0", midnight - MICROSECOND), event("b/0", midnight), event("b/1", midnight))
    start, end = midnight - timedelta(days=3), midnight + timedelta(days=3)
    days = await grouped(books, start, end, group_by=pb.USAGE_GROUP_DAY)
    before, after = (midnight - MICROSECOND).date().isoformat(), midnight.date().isoformat()
    assert {name: day.events for name, day in days.items()} == {before: 1, after: 2}


async def test_a_group_is_one_that_there_is(books: Books) -> None:
    span = {
        "start_time": fields.timestamp(datetime(2026, 1, 1, tzinfo=UTC)),
        "end_time": fields.timestamp(datetime.now(UTC)),
    }
    for group_by in (0, 99):
        with invalid("group_by"):
            await books.api.usage.QueryUsage(
                pb.QueryUsageRequest(workspace_id=books.workspace_id, group_by=group_by, **span)  # type: ignore[arg-type]
            )


@pytest.mark.parametrize("kind", ["Turn", "x" * 65, "a b", "ä", "a/b"])
async def test_a_kind_is_a_short_name(books: Books, kind: str) -> None:
    with invalid("events[0].kind"):
        await books.record(event("a/0", kind=kind))


async def test_the_kind_is_a_part_of_the_body_and_the_usual_one_need_not_be_said(books: Books) -> None:
    at = datetime.now(UTC)
    assert await books.record(event("a/0", at), event("a/0", at, kind="turn")) == [False, True]
    with taken(Reason.REASON_EVENT_REUSED):
        await books.record(event("a/0", at, kind="tool"))


# Streams.


async def stream(books: Books, *batches: list[pb.UsageEvent]) -> AsyncIterator[pb.StreamUsageResponse]:
    requests = [pb.StreamUsageRequest(workspace_id=books.workspace_id, events=batch) for batch in batches]
    async for answer in books.api.usage.StreamUsage(iter(requests)):
        yield answer


async def test_a_stream_is_answered_batch_by_batch(books: Books, owner: Connection) -> None:
    batches = [[event(f"{number}-{index}/0") for index in range(50)] for number in range(20)]
    answers = [answer async for answer in stream(books, *batches)]
    assert [answer.batch for answer in answers] == list(range(1, 21))
    assert all(list(answer.duplicates) == [False] * 50 for answer in answers)
    again = [answer async for answer in stream(books, *batches[:2])]
    assert all(list(answer.duplicates) == [True] * 50 for answer in again)
    assert await agreed(owner, books.workspace_id) == 1000


async def test_what_a_broken_stream_has_answered_is_stored_and_what_follows_is_not(books: Books, owner: Connection) -> None:
    bad = [event("x/0"), event("x/1", messages=-1)]
    answers = stream(books, [event("a/0")], [event("b/0")], bad, [event("c/0")])
    assert [(await anext(answers)).batch, (await anext(answers)).batch] == [1, 2]
    with invalid("events[1].messages"):
        await anext(answers)
    assert await agreed(owner, books.workspace_id) == 2


async def test_a_stream_that_is_sent_again_after_it_was_cut_counts_once(books: Books, owner: Connection) -> None:
    batches = [[event(f"{number}-{index}/0") for index in range(20)] for number in range(30)]
    for answered in (3, 11):
        requests = [pb.StreamUsageRequest(workspace_id=books.workspace_id, events=batch) for batch in batches]
        call = books.api.usage.StreamUsage(iter(requests))
        async for answer in call:
            if answer.batch == answered:
                call.cancel()
                break
        assert await agreed(owner, books.workspace_id) >= 20 * answered
    assert [answer.batch async for answer in stream(books, *batches)][-1] == 30
    assert await agreed(owner, books.workspace_id) == 600


async def test_a_stream_ends_by_itself_when_the_registry_does(
    books: Books, owner: Connection, database_settings: DatabaseSettings
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(registry(settings_of(database_settings, drain_s=600)))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            call = UsageServiceStub(channel).StreamUsage()
            await call.write(pb.StreamUsageRequest(workspace_id=books.workspace_id, events=[event("a/0")]))
            assert await call.read() == pb.StreamUsageResponse(batch=1, duplicates=[False])
            ending = asyncio.create_task(stack.aclose())
            with refused(grpc.StatusCode.UNAVAILABLE, Reason.REASON_DRAINING):
                await asyncio.wait_for(call.read(), timeout=60)
            await ending
    assert await agreed(owner, books.workspace_id) == 1


# Windows.


def window(books: Books, back: timedelta, **values: object) -> pb.ReadWindowRequest:
    start = fields.timestamp(datetime.now(UTC) - back)
    given = {"workspace_id": books.workspace_id, "start_time": start, "cell": Duration(seconds=300), **values}
    return pb.ReadWindowRequest(**given)  # type: ignore[arg-type]


async def test_a_window_tells_cells_and_operations(books: Books) -> None:
    await books.make_agent("helper", per_message_micros=5)
    now = datetime.now(UTC)
    back = [timedelta(minutes=minutes) for minutes in (1, 2, 50, 70, 400, 1600)]
    await books.record(*(event(f"op/{number}/{number % 2}", now - each) for number, each in enumerate(back)), event("plain"))
    parts = [part async for part in books.api.usage.ReadWindow(window(books, timedelta(hours=24)))]
    cells = [cell for part in parts for cell in part.cells]
    counted: Counter[int] = Counter()
    for cell in cells:
        counted[cell.start_time.seconds] += cell.messages
        assert (cell.cost.amount_micros, cell.cost.currency) == (5 * cell.messages, "USD")
    expected = Counter(int((now - each).timestamp()) // 300 * 300 for each in [*back[:-1], timedelta()])
    assert counted == expected
    operations = [operation.operation_id for part in parts for operation in part.operations]
    assert operations == ["op/2", "op/1", "op/0", "plain"]
    few = [
        part
        async for part in books.api.usage.ReadWindow(window(books, timedelta(hours=1), operations_for=Duration(seconds=90)))
    ]
    assert [operation.operation_id for part in few for operation in part.operations] == ["op/0", "plain"]


async def test_an_empty_window_has_a_time(books: Books) -> None:
    (part,) = [part async for part in books.api.usage.ReadWindow(window(books, timedelta(hours=24)))]
    assert abs(part.read_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)
    assert not part.cells
    request = window(books, timedelta(hours=24), workspace_id="nowhere")
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        _ = [part async for part in books.api.usage.ReadWindow(request)]


@pytest.mark.parametrize(
    ("group", "groups"),
    [
        (pb.WINDOW_GROUP_USER, {("ann", ""): 3, ("bob", ""): 4}),
        (pb.WINDOW_GROUP_AGENT, {("", "helper"): 5, ("", "other"): 2}),
        (pb.WINDOW_GROUP_WORKSPACE, {("", ""): 7}),
        (pb.WINDOW_GROUP_UNSPECIFIED, {("ann", "helper"): 1, ("ann", "other"): 2, ("bob", "helper"): 4}),
    ],
)
async def test_a_window_is_summed_by_what_is_asked_for(
    books: Books, group: pb.WindowGroup.ValueType, groups: dict[tuple[str, str], int]
) -> None:
    await books.record(event("1"), event("2", messages=2, agent_id="other"), event("3", messages=4, user_id="bob"))
    counted: Counter[tuple[str, str]] = Counter()
    async for part in books.api.usage.ReadWindow(
        window(books, timedelta(hours=25, minutes=59), cell=Duration(seconds=7200), group_by=group)
    ):
        for cell in part.cells:
            counted[cell.user_id, cell.agent_id] += cell.messages
    assert counted == groups


async def test_a_large_window_comes_in_parts(books: Books) -> None:
    for number in range(3):
        await books.record(*(event(f"{number}-{index}/0", user_id=f"u{number}-{index}") for index in range(400)))
    parts = [part async for part in books.api.usage.ReadWindow(window(books, timedelta(hours=1)))]
    assert max(len(part.cells) for part in parts) == 500
    assert sum(cell.events for part in parts for cell in part.cells) == 1200
    assert len({operation.operation_id for part in parts for operation in part.operations}) == 1200
    assert len({part.read_time.ToNanoseconds() for part in parts}) == 1


async def test_a_window_has_its_bounds(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, pb.ReadWindowRequest]] = [
        ("start_time", window(books, timedelta(hours=26, minutes=1))),
        ("start_time", window(books, timedelta(minutes=-1))),
        ("cell", window(books, timedelta(hours=24), cell=Duration(seconds=5))),
        ("cell", window(books, timedelta(hours=24), cell=Duration(seconds=7201))),
        ("cell", window(books, timedelta(hours=24), cell=None)),
        ("group_by", window(books, timedelta(hours=24), group_by=9)),
        ("operations_for", window(books, timedelta(hours=24), operations_for=Duration(seconds=3601))),
    ]
    for field, request in asked:
        with invalid(field):
            _ = [part async for part in books.api.usage.ReadWindow(request)]
    monkeypatch.setattr(store, "_OPERATIONS_MAX", 1)
    await books.record(event("a/0"), event("b/0"))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.REASON_TOO_MANY):
        _ = [part async for part in books.api.usage.ReadWindow(window(books, timedelta(hours=1)))]


async def test_the_partition_of_a_month_that_is_missing_is_made_by_the_sweep(books: Books, owner: Connection) -> None:
    """Without one its events are in the default partition, and counted all the same."""
    partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'registry.usage_events'::regclass"
    before = await owner.fetchval(partitions)
    assert before == 1 + 1 + 3
    newest = months.after(months.after(months.after(months_ago(0))))
    await owner.execute(f"DROP TABLE registry.usage_events_{newest:%Y_%m}")
    assert await owner.fetchval("SELECT registry.add_usage_partitions(3)") == 1
    assert await owner.fetchval(partitions) == before
    assert await owner.fetchval("SELECT registry.add_usage_partitions(3)") == 0
    await books.record(event("old/0", datetime(2001, 1, 1, tzinfo=UTC)))
    in_default = "SELECT count(*) FROM registry.usage_events_other WHERE workspace_id = $1"
    assert await owner.fetchval(in_default, books.workspace_id) == 1
    assert await agreed(owner, books.workspace_id) == 1
