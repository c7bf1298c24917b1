"""The history of sessions: whoever tells it, in whatever order, however often, the same comes of it."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.registry.stubs import Connection, Registry, invalid, refused, settings_of, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import session_pb2 as pb
from twofold.registry.v1 import workspace_pb2
from twofold.registry.v1.pod_pb2 import PodIncarnation
from twofold_chassis.settings import DatabaseSettings
from twofold_registry.app import registry
from twofold_registry.store.statements import STATEMENTS

NOON = 1_700_000_000
LIFE = PodIncarnation(epoch=7, number=1)
LEFT, REVOKED = pb.SESSION_CLOSE_REASON_CLIENT_LEFT, pb.SESSION_CLOSE_REASON_REVOKED


def opened(session: str, at: int, **values: Any) -> pb.SessionEvent:
    """A session was opened, so many seconds after noon."""
    values = {"user_id": "ann", "agent_id": "helper", "pod_id": "pod-1", "incarnation": LIFE, **values}
    kind = pb.SESSION_EVENT_KIND_OPENED
    return pb.SessionEvent(session_id=session, kind=kind, event_time=Timestamp(seconds=NOON + at), **values)


def closed(session: str, at: int, reason: pb.SessionCloseReason.ValueType = LEFT, **values: Any) -> pb.SessionEvent:
    """A session was closed."""
    event = opened(session, at, **values)
    event.kind, event.close_reason = pb.SESSION_EVENT_KIND_CLOSED, reason
    return event


async def record(api: Registry, workspace: str, *events: pb.SessionEvent) -> list[int]:
    request = pb.RecordSessionsRequest(workspace_id=workspace, events=events)
    return list((await api.sessions.RecordSessions(request)).conflicts)


async def listed(api: Registry, workspace: str, size: int = 500, **values: Any) -> list[pb.Session]:
    """All sessions that are asked for, page by page."""
    request = pb.ListSessionsRequest(workspace_id=workspace, page_size=size, **values)
    found: list[pb.Session] = []
    while True:
        page = await api.sessions.ListSessions(request)
        assert len(page.sessions) <= size
        found += page.sessions
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def told(session: pb.Session) -> tuple[int | None, int | None, int]:
    """When it was opened and closed, in seconds after noon, and why."""
    times = [
        getattr(session, name).seconds - NOON if session.HasField(name) else None for name in ("open_time", "close_time")
    ]
    return times[0], times[1], session.close_reason


async def test_a_session_is_opened_and_closed(api: Registry, workspace: str) -> None:
    assert await record(api, workspace, opened("s", 0)) == []
    (session,) = await listed(api, workspace)
    assert told(session) == (0, None, pb.SESSION_CLOSE_REASON_UNSPECIFIED)
    assert await record(api, workspace, closed("s", 60, REVOKED)) == []
    (session,) = await listed(api, workspace)
    assert told(session) == (0, 60, REVOKED)
    assert session == pb.Session(
        workspace_id=workspace,
        session_id="s",
        user_id="ann",
        agent_id="helper",
        pod_id="pod-1",
        incarnation=LIFE,
        open_time=Timestamp(seconds=NOON),
        close_time=Timestamp(seconds=NOON + 60),
        close_reason=REVOKED,
    )


async def test_a_close_that_comes_first_is_kept_and_joined(api: Registry, workspace: str) -> None:
    await record(api, workspace, closed("s", 60))
    assert [told(session) for session in await listed(api, workspace)] == [(None, 60, LEFT)]
    await record(api, workspace, opened("s", 0))
    assert [told(session) for session in await listed(api, workspace)] == [(0, 60, LEFT)]
    assert await listed(api, workspace, open_only=True) == []


async def test_the_earliest_opening_and_the_earliest_closing_count_each_by_itself(api: Registry, workspace: str) -> None:
    await record(api, workspace, opened("s", 5), closed("s", 60, REVOKED))
    await record(api, workspace, opened("s", 0), closed("s", 90))
    assert [told(session) for session in await listed(api, workspace)] == [(0, 60, REVOKED)]
    await record(api, workspace, opened("s", 3), closed("s", 30))
    assert [told(session) for session in await listed(api, workspace)] == [(0, 30, LEFT)]


async def test_a_repeat_changes_nothing_not_even_the_row(api: Registry, owner: Connection, workspace: str) -> None:
    events = [opened("s", 0), closed("s", 60), opened("t", 5)]
    await record(api, workspace, *events)
    row = "SELECT xmin, ctid, session_id FROM registry.sessions WHERE workspace_id = $1 ORDER BY session_id"
    before = await owner.fetch(row, workspace)
    for _ in range(3):
        assert await record(api, workspace, *events, *events) == []
    assert await owner.fetch(row, workspace) == before


async def test_a_takeover_is_a_session_of_its_own(api: Registry, workspace: str) -> None:
    await record(api, workspace, opened("s", 0, fence=1))
    taken_over = closed("s", 60, pb.SESSION_CLOSE_REASON_TAKEN_OVER, fence=1)
    await record(api, workspace, opened("s", 60, fence=2, pod_id="pod-2"), taken_over)
    newest, oldest = await listed(api, workspace)
    assert (newest.fence, newest.pod_id, told(newest)) == (2, "pod-2", (60, None, 0))
    assert (oldest.fence, oldest.pod_id, told(oldest)) == (1, "pod-1", (0, 60, pb.SESSION_CLOSE_REASON_TAKEN_OVER))


@pytest.mark.parametrize(
    "other",
    [
        {"user_id": "bob"},
        {"agent_id": "painter"},
        {"pod_id": "pod-2"},
        {"incarnation": PodIncarnation(epoch=7, number=2)},
        {"incarnation": PodIncarnation(epoch=8, number=1)},
    ],
    ids=str,
)
async def test_an_event_of_somebody_elses_session_is_told_and_the_others_are_kept(
    api: Registry, workspace: str, other: dict[str, Any]
) -> None:
    await record(api, workspace, opened("s", 0))
    assert await record(api, workspace, opened("t", 1), closed("s", 60, **other), closed("t", 2)) == [1]
    assert [told(session) for session in await listed(api, workspace)] == [(1, 2, LEFT), (0, None, 0)]
    # In one batch the first one counts, of a session that is not known yet; else what is known.
    assert await record(api, workspace, opened("u", 3), closed("u", 4, **other)) == [1]
    assert told((await listed(api, workspace))[0]) == (3, None, 0)
    assert await record(api, workspace, opened("u", 1, **other), closed("u", 5), closed("u", 4, **other)) == [0, 2]
    assert told((await listed(api, workspace))[0]) == (3, 5, LEFT)
    assert await record(api, workspace, opened("u", 1, **other), opened("u", 2, user_id="eve")) == [0, 1]


EVENTS = some.lists(
    some.builds(
        lambda session, fence, at, reason: (
            opened(session, at, fence=fence) if reason is None else closed(session, at, reason, fence=fence)
        ),
        some.sampled_from("abc"),
        some.integers(0, 1),
        some.integers(0, 3),
        some.none() | some.sampled_from([LEFT, REVOKED, pb.SESSION_CLOSE_REASON_ERROR]),
    ),
    min_size=1,
    max_size=12,
)


def model(events: Sequence[pb.SessionEvent]) -> set[tuple[str, int, int | None, int | None, int]]:
    """What is to come of events: the earliest opening and the earliest closing of each session and fence."""
    found = set()
    for session, fence in {(event.session_id, event.fence) for event in events}:
        of_it = [event for event in events if (event.session_id, event.fence) == (session, fence)]
        opens = [event.event_time.seconds - NOON for event in of_it if not event.close_reason]
        closes = [(event.event_time.seconds - NOON, int(event.close_reason)) for event in of_it if event.close_reason]
        at, reason = min(closes, default=(None, 0))
        found.add((session, fence, min(opens, default=None), at, reason))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, dice=some.randoms())
async def test_any_order_and_any_repeats_come_to_the_same(
    api: Registry, owner: Connection, workspace: str, events: list[pb.SessionEvent], dice: Any
) -> None:
    await owner.execute("DELETE FROM registry.sessions WHERE workspace_id = $1", workspace)
    sent = events + dice.choices(events, k=dice.randrange(6))
    dice.shuffle(sent)
    batches: list[list[pb.SessionEvent]] = [[]]
    for event in sent:
        if batches[-1] and dice.random() < 0.4:
            batches.append([])
        batches[-1].append(event)
    if dice.random() < 0.5:
        answers: Sequence[list[int]] = await asyncio.gather(*(record(api, workspace, *batch) for batch in batches))
    else:
        answers = [await record(api, workspace, *batch) for batch in batches]
    assert not any(answers)
    found = await listed(api, workspace)
    assert {(session.session_id, session.fence, *told(session)) for session in found} == model(events)
    assert len(found) == len(model(events))


async def test_two_routers_at_two_registries_may_tell_the_same_at_once(
    api: Registry, database_settings: DatabaseSettings, workspace: str
) -> None:
    events = [event for index in range(100) for event in (opened(f"s{index}", index), closed(f"s{index}", index + 200))]
    async with (
        registry(settings_of(database_settings)) as replica,
        grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}") as channel,
    ):
        # Each in another order: batches that met in a circle would be refused as busy, or worse.
        orders = [events, events[::-1], events[1::2] + events[::2], events[100:] + events[:100]]
        answers = await asyncio.gather(
            *(record(each, workspace, *order) for each in (api, Registry(channel)) for order in orders)
        )
    assert answers == [[]] * 8
    assert sorted(told(session)[:2] for session in await listed(api, workspace)) == [(i, i + 200) for i in range(100)]


@pytest.fixture
async def furnished(api: Registry, workspace: str) -> list[pb.SessionEvent]:
    """Sixty openings of three users, with two agents, through two pods; every second session is closed."""
    events = [
        opened(f"s{i:02}", i // 2, user_id=f"u{i % 3}", agent_id=f"a{i % 2}", pod_id=f"p{i // 30}", fence=i)
        for i in range(60)
    ]
    ends = [
        closed(e.session_id, 100, user_id=e.user_id, agent_id=e.agent_id, pod_id=e.pod_id, fence=e.fence)
        for e in events[::2]
    ]
    assert await record(api, workspace, *events, *ends) == []
    return events


@pytest.mark.parametrize("open_only", [False, True])
@pytest.mark.parametrize("user", ["", "u1"])
@pytest.mark.parametrize("agent", ["", "a1"])
@pytest.mark.parametrize("pod", ["", "p1"])
async def test_sessions_are_listed_newest_first_by_all_that_is_asked(
    api: Registry, workspace: str, furnished: list[pb.SessionEvent], user: str, agent: str, pod: str, open_only: bool
) -> None:
    for span in ({}, {"start_time": Timestamp(seconds=NOON + 5), "end_time": Timestamp(seconds=NOON + 20)}):
        expected = [
            event.session_id
            for index, event in enumerate(furnished)
            if (not user or event.user_id == user)
            and (not agent or event.agent_id == agent)
            and (not pod or event.pod_id == pod)
            and (not open_only or index % 2)
            and (not span or 5 <= event.event_time.seconds - NOON < 20)
        ]
        filters: dict[str, Any] = {"user_id": user, "agent_id": agent, "pod_id": pod, "open_only": open_only, **span}
        found = await listed(api, workspace, size=4, **filters)
        assert [session.session_id for session in found] == expected[::-1]


async def test_pages_stand_still_while_sessions_begin(
    api: Registry, workspace: str, furnished: list[pb.SessionEvent]
) -> None:
    first = await api.sessions.ListSessions(pb.ListSessionsRequest(workspace_id=workspace, page_size=20))
    await record(api, workspace, *(opened(f"new{index}", 90 + index) for index in range(20)))
    request = pb.ListSessionsRequest(workspace_id=workspace, page_size=500, page_token=first.next_page_token)
    rest = await api.sessions.ListSessions(request)
    found = [session.session_id for session in (*first.sessions, *rest.sessions)]
    assert found == [event.session_id for event in furnished][::-1]
    request.user_id = "u1"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_PAGE_TOKEN, "page_token"):
        await api.sessions.ListSessions(request)


async def test_what_ends_with_its_workspace_is_still_told_and_kept(api: Registry, workspace: str) -> None:
    await record(api, workspace, opened("s", 0))
    await api.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(workspace_id=workspace))
    assert await record(api, workspace, closed("s", 60, REVOKED)) == []
    assert [told(session) for session in await listed(api, workspace)] == [(0, 60, REVOKED)]


async def test_a_workspace_that_never_was_has_no_sessions_and_takes_none(api: Registry, workspace: str) -> None:
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await record(api, f"{workspace}-never", opened("s", 0))
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await listed(api, f"{workspace}-never")


async def test_bad_events_are_refused_by_their_field_and_nothing_is_kept(api: Registry, workspace: str) -> None:
    soon = Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(hours=2))
    bad = {
        "events[1].session_id": opened("", 0),
        "events[1].fence": opened("s", 0, fence=-1),
        "events[1].incarnation.number": opened("s", 0, incarnation=PodIncarnation(epoch=1)),
        "events[1].kind": pb.SessionEvent(
            session_id="s", user_id="u", agent_id="a", pod_id="p", incarnation=LIFE, event_time=Timestamp(seconds=NOON)
        ),
        "events[1].close_reason": closed("s", 0, pb.SESSION_CLOSE_REASON_UNSPECIFIED),
        "events[1].event_time": opened("s", -NOON),
    }
    for field, event in bad.items():
        with invalid(field):
            await record(api, workspace, opened("good", 0), event)
    early_reason, ahead = opened("s", 0), opened("s", 0)
    early_reason.close_reason = LEFT
    ahead.event_time.CopyFrom(soon)
    with invalid("events[1].close_reason"):
        await record(api, workspace, opened("good", 0), early_reason)
    with invalid("events[1].event_time"):
        await record(api, workspace, opened("good", 0), ahead)
    with invalid("events"):
        await record(api, workspace, *[opened("s", 0)] * 501)
    assert await listed(api, workspace) == []
    assert await record(api, workspace, *[opened("s", 0)] * 500) == []


@pytest.mark.parametrize(
    ("statement", "filters", "index"),
    [
        ("list_sessions", (), "sessions_by_time"),
        ("list_open_sessions", (), "open_sessions"),
        ("list_sessions_of_user", (False, "u1", None, None), "sessions_of_a_user"),
        ("list_sessions_of_pod", (False, "p1", None), "sessions_of_a_pod"),
        ("list_sessions_of_agent", (False, "a1"), "sessions_of_an_agent"),
    ],
)
async def test_each_list_goes_along_an_index_for_the_services_role_too(
    many: str, application: Connection, statement: str, filters: tuple[object, ...], index: str
) -> None:
    plain = "EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF) "
    ahead, ever = datetime(9999, 12, 31, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)
    async with application.transaction():
        await application.execute("SELECT set_config('twofold.workspaces', $1, true)", many)
        rows = await application.fetch(plain + STATEMENTS[statement], many, ahead, "", 0, ever, 11, *filters)
    plan = "\n".join(row[0] for row in rows)
    assert index in plan
    assert "Seq Scan" not in plan
    looked_at = [int(float(count)) for count in re.findall(r"Scan.*rows=([\d.]+)", plan)]
    assert max(looked_at) <= 200, plan


@pytest.fixture(scope="module")
async def many(owner: Connection) -> AsyncIterator[str]:
    """A workspace with 20,000 sessions of 200 users, with 100 agents, through 100 pods; each hundredth is open."""
    workspace = "ws-of-many-sessions"
    await owner.execute(
        "INSERT INTO registry.sessions (workspace_id, session_id, fence, user_id, agent_id, pod_id, pod_epoch, pod_number,"
        " opened_at, closed_at, close_reason)"
        " SELECT $1, 's' || i, 0, 'u' || i % 200, 'a' || i / 7 % 100, 'p' || i / 11 % 100, 1, 1,"
        " now() - make_interval(secs => i), CASE WHEN i % 100 > 0 THEN now() END, CASE WHEN i % 100 > 0 THEN 1 ELSE 0 END"
        " FROM generate_series(1, 20000) i",
        workspace,
    )
    await owner.execute("ANALYZE registry.sessions")
    yield workspace
    await owner.execute("DELETE FROM registry.sessions WHERE workspace_id = $1", workspace)
    await owner.execute("ANALYZE registry.sessions")
