import asyncio
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.registry.stubs import URL, Connection, Registry, invalid, lost, refused, taken, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2 as pb
from twofold.registry.v1 import workspace_pb2
from twofold_chassis.prices import Price
from twofold_registry.agents import (
    Agent,
    AgentSettings,
    AgentState,
    AgentStateFixed,
    ContextDelivery,
    Observation,
    ObservedState,
    ReportOutcome,
    Target,
)
from twofold_registry.resources import Edit

SETTINGS = pb.AgentSettings(
    instructions="Be brief.\nBe kind.",
    model="small",
    context_delivery=pb.CONTEXT_DELIVERY_MESSAGES,
    context_messages_max=7,
    context_tokens_max=900,
    first_token_timeout=Duration(seconds=1, nanos=500_000_000),
    turn_timeout=Duration(seconds=3600),
)
BLUE = pb.AgentTarget(name="blue", url="http://blue.agents.svc.cluster.local", weight=900)
GREEN = pb.AgentTarget(name="green", url="http://green.agents.svc.cluster.local", weight=100)
PRICE = pb.AgentPrice(
    per_message_micros=10**12, per_1000_input_tokens_micros=1, per_1000_output_tokens_micros=0, currency="EUR"
)
READY, COLD, FAILING = pb.OBSERVED_STATE_READY, pb.OBSERVED_STATE_COLD, pb.OBSERVED_STATE_FAILING
RECORDED = pb.REPORT_OUTCOME_RECORDED
OLDER_GENERATION, OLDER_OBSERVATION = pb.REPORT_OUTCOME_OLDER_GENERATION, pb.REPORT_OUTCOME_OLDER_OBSERVATION


async def get(api: Registry, workspace_id: str, agent_id: str) -> pb.Agent:
    return (await api.agents.GetAgent(pb.GetAgentRequest(workspace_id=workspace_id, agent_id=agent_id))).agent


async def update(api: Registry, paths: list[str], **values: object) -> pb.Agent:
    request = pb.UpdateAgentRequest(agent=pb.Agent(**values), update_mask=FieldMask(paths=paths))  # type: ignore[arg-type]
    return (await api.agents.UpdateAgent(request)).agent


async def delete(api: Registry, workspace_id: str, agent_id: str, etag: str = "") -> None:
    await api.agents.DeleteAgent(pb.DeleteAgentRequest(workspace_id=workspace_id, agent_id=agent_id, etag=etag))


def seen(state: pb.ObservedState.ValueType = READY, at: int = 10**9, **values: Any) -> pb.AgentObservation:
    return pb.AgentObservation(state=state, **{"generation": 1, "observe_time": Timestamp(seconds=at), **values})


async def report(
    api: Registry, workspace_id: str, observation: pb.AgentObservation, agent_id: str = "helper"
) -> pb.ReportAgentStateResponse:
    request = pb.ReportAgentStateRequest(workspace_id=workspace_id, agent_id=agent_id, observation=observation)
    return await api.agents.ReportAgentState(request)


async def test_an_agent_is_created_with_its_defaults_filled_in(api: Registry, workspace: str) -> None:
    agent = await api.make_agent(workspace, "helper")
    assert (agent.url, agent.state, agent.generation) == (URL, pb.AGENT_STATE_PUBLISHED, 1)
    assert (list(agent.targets), agent.price, list(agent.observations)) == ([], pb.AgentPrice(currency="USD"), [])
    assert agent.settings == pb.AgentSettings(
        model="helper",
        context_delivery=pb.CONTEXT_DELIVERY_INSTRUCTIONS,
        context_messages_max=20,
        context_tokens_max=8_000,
        first_token_timeout=Duration(seconds=30),
        turn_timeout=Duration(seconds=300),
    )
    assert await get(api, workspace, "helper") == agent


async def test_an_agent_lives_from_its_creation_to_its_deletion(api: Registry, workspace: str) -> None:
    created = await api.make_agent(workspace, "helper", settings=SETTINGS, state=pb.AGENT_STATE_DRAFT)
    assert (created.settings, created.state) == (SETTINGS, pb.AGENT_STATE_DRAFT)

    values = {"workspace_id": workspace, "agent_id": "helper", "state": pb.AGENT_STATE_PAUSED, "url": "ignored"}
    updated = await update(api, ["state"], etag=created.etag, **values)
    assert (updated.state, updated.url, updated.settings) == (pb.AGENT_STATE_PAUSED, URL, SETTINGS)
    assert await get(api, workspace, "helper") == updated

    with lost():
        await update(api, ["state"], etag=created.etag, **values)
    with lost():
        await delete(api, workspace, "helper", etag=created.etag)
    await delete(api, workspace, "helper", etag=updated.etag)
    for gone in (get(api, workspace, "helper"), delete(api, workspace, "helper"), update(api, ["state"], **values)):
        with unknown(Reason.REASON_AGENT_UNKNOWN):
            await gone
    with taken(Reason.REASON_AGENT_EXISTS):
        await api.make_agent(workspace, "helper")


async def test_each_setting_is_changed_alone(api: Registry, workspace: str) -> None:
    before = (await api.make_agent(workspace, "helper")).settings
    for field in SETTINGS.DESCRIPTOR.fields:
        given = {"workspace_id": workspace, "agent_id": "helper", "settings": SETTINGS}
        after = (await update(api, [f"settings.{field.name}"], **given)).settings
        assert getattr(after, field.name) == getattr(SETTINGS, field.name)
        before.MergeFrom(pb.AgentSettings(**{field.name: getattr(SETTINGS, field.name)}))
        if field.message_type is not None:
            getattr(before, field.name).CopyFrom(getattr(SETTINGS, field.name))
        assert after == before
    reset = await update(api, ["settings"], workspace_id=workspace, agent_id="helper")
    assert (reset.settings.model, reset.settings.context_messages_max) == ("helper", 20)


async def test_the_smallest_timeout_does_not_become_nothing(api: Registry, workspace: str) -> None:
    settings = pb.AgentSettings(first_token_timeout=Duration(nanos=1))
    agent = await api.make_agent(workspace, "helper", settings=settings)
    assert agent.settings.first_token_timeout == Duration(nanos=1000)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"instructions": "a\0b"}, "instructions"),
        ({"instructions": "x" * (64 * 1024 + 1)}, "instructions"),
        ({"model": "x" * 256}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"context_delivery": 9}, "context_delivery"),
        ({"context_messages_max": 101}, "context_messages_max"),
        ({"context_messages_max": -1}, "context_messages_max"),
        ({"context_tokens_max": 1_000_001}, "context_tokens_max"),
        ({"first_token_timeout": Duration()}, "first_token_timeout"),
        ({"first_token_timeout": Duration(seconds=600, nanos=1)}, "first_token_timeout"),
        ({"first_token_timeout": Duration(seconds=1, nanos=-1)}, "first_token_timeout"),
        ({"turn_timeout": Duration(seconds=-5)}, "turn_timeout"),
        ({"turn_timeout": Duration(seconds=3601)}, "turn_timeout"),
        ({"turn_timeout": Duration(seconds=2**62, nanos=2_000_000_000)}, "turn_timeout"),
    ],
)
async def test_bad_settings_are_refused_by_field(
    api: Registry, workspace: str, settings: dict[str, object], field: str
) -> None:
    with invalid(f"agent.settings.{field}"):
        await api.make_agent(workspace, "helper", settings=settings)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"display_name": ""}, "display_name"),
        ({"display_name": "x" * 256}, "display_name"),
        ({"state": 7}, "state"),
        ({"state": pb.AGENT_STATE_GONE}, "state"),
        ({"url": ""}, "url"),
        ({"price": pb.AgentPrice(per_message_micros=-1)}, "price.per_message_micros"),
        ({"price": pb.AgentPrice(per_1000_input_tokens_micros=10**12 + 1)}, "price.per_1000_input_tokens_micros"),
        ({"price": pb.AgentPrice(per_1000_output_tokens_micros=2**63 - 1)}, "price.per_1000_output_tokens_micros"),
        ({"price": pb.AgentPrice(per_1000_output_tokens_micros=-(2**63))}, "price.per_1000_output_tokens_micros"),
        ({"price": pb.AgentPrice(currency="eur")}, "price.currency"),
        ({"price": pb.AgentPrice(currency="EURO")}, "price.currency"),
        ({"price": pb.AgentPrice(currency="E\u0395R")}, "price.currency"),  # with a Greek letter
        ({"targets": [pb.AgentTarget(name=f"t{index}", url=URL, weight=1) for index in range(17)]}, "targets"),
        ({"targets": [BLUE] * 5000}, "targets"),
        ({"targets": [BLUE, GREEN, BLUE]}, "targets[2].name"),
        ({"targets": [pb.AgentTarget(name="a", url=URL), pb.AgentTarget(name="b", url=URL)]}, "targets"),
        ({"targets": [pb.AgentTarget(url=URL, weight=1)]}, "targets[0].name"),
        ({"targets": [BLUE, pb.AgentTarget(name="x" * 64, url=URL, weight=1)]}, "targets[1].name"),
        ({"targets": [BLUE, pb.AgentTarget(name="b", weight=1)]}, "targets[1].url"),
        ({"targets": [BLUE, pb.AgentTarget(name="b", url="http://127.0.0.1", weight=1)]}, "targets[1].url"),
        ({"targets": [BLUE, pb.AgentTarget(name="b", url="http://evil.test", weight=0)]}, "targets[1].url"),
        ({"targets": [BLUE, pb.AgentTarget(name="b", url=URL, weight=-1)]}, "targets[1].weight"),
        ({"targets": [BLUE, pb.AgentTarget(name="b", url=URL, weight=1001)]}, "targets[1].weight"),
        ({"agent_id": "a\x00"}, "agent_id"),
        ({"workspace_id": ""}, "workspace_id"),
    ],
)
async def test_bad_values_are_refused_by_field(api: Registry, workspace: str, values: dict[str, object], field: str) -> None:
    given = {"workspace_id": workspace, "agent_id": "helper", **values}
    with invalid(f"agent.{field}"):
        await api.make_agent(**given)  # type: ignore[arg-type]


async def test_a_state_is_named_when_it_is_set(api: Registry, workspace: str) -> None:
    await api.make_agent(workspace, "helper")
    with invalid("agent.state"):
        await update(api, ["state"], workspace_id=workspace, agent_id="helper")


@pytest.mark.parametrize("paths", [[], ["agent_id"], ["settings.first_token_timeout.seconds"], ["settings."], ["etag"]])
async def test_a_mask_names_known_fields(api: Registry, workspace: str, paths: list[str]) -> None:
    await api.make_agent(workspace, "helper")
    with invalid("update_mask"):
        await update(api, paths, workspace_id=workspace, agent_id="helper")


async def test_the_workspaces_own_suffixes_are_allowed_for_its_agents_only(api: Registry, workspace: str) -> None:
    settings = workspace_pb2.WorkspaceSettings(allowed_url_suffixes=["acme.test"])
    own = (await api.make_workspace("", settings=settings)).workspace_id
    agent = await api.make_agent(own, "helper", url="HTTPS://Agents.ACME.test:8443/base/")
    assert agent.url == "https://agents.acme.test:8443/base"
    with invalid("agent.url"):
        await api.make_agent(workspace, "helper", url="https://agents.acme.test")
    with invalid("agent.url"):
        await update(api, ["url"], workspace_id=own, agent_id="helper", url="https://acme.test.evil.example")


async def test_other_fields_change_although_the_url_is_no_longer_allowed(api: Registry) -> None:
    settings = workspace_pb2.WorkspaceSettings(allowed_url_suffixes=["acme.test"])
    workspace_id = (await api.make_workspace("", settings=settings)).workspace_id
    await api.make_agent(workspace_id, "helper", url="https://agents.acme.test")
    empty = workspace_pb2.Workspace(workspace_id=workspace_id)
    mask = FieldMask(paths=["settings"])
    await api.workspaces.UpdateWorkspace(workspace_pb2.UpdateWorkspaceRequest(workspace=empty, update_mask=mask))
    renamed = await update(api, ["display_name"], workspace_id=workspace_id, agent_id="helper", display_name="Old")
    assert renamed.url == "https://agents.acme.test"


async def test_a_refusal_stays_small_however_much_a_workspace_allows(api: Registry) -> None:
    suffixes = [f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 50}{index:02}.test" for index in range(50)]
    settings = workspace_pb2.WorkspaceSettings(allowed_url_suffixes=suffixes)
    workspace_id = (await api.make_workspace("", settings=settings)).workspace_id
    with invalid("agent.url"):
        await api.make_agent(workspace_id, "helper", url="http://evil.example")


async def test_targets_and_prices_are_kept_and_changed(api: Registry, workspace: str) -> None:
    agent = await api.make_agent(workspace, "helper", targets=[BLUE, GREEN], price=PRICE)
    assert (list(agent.targets), agent.price) == ([BLUE, GREEN], PRICE)
    names: dict[str, Any] = {"workspace_id": workspace, "agent_id": "helper"}
    cheaper = await update(api, ["price.per_message_micros"], price=pb.AgentPrice(per_message_micros=7), **names)
    assert cheaper.price == pb.AgentPrice(per_message_micros=7, per_1000_input_tokens_micros=1, currency="EUR")
    assert (await update(api, ["price"], **names)).price == pb.AgentPrice(currency="USD")
    alone = await update(api, ["targets"], targets=[GREEN], **names)
    assert (list(alone.targets), alone.generation) == ([GREEN], 2)
    assert await get(api, workspace, "helper") == alone
    assert list((await update(api, ["targets"], **names)).targets) == []


async def test_sixteen_targets_are_allowed(api: Registry, workspace: str) -> None:
    targets = [pb.AgentTarget(name=f"{index}", url=URL, weight=index) for index in range(16)]
    agent = await api.make_agent(workspace, "helper", targets=targets)
    assert list(agent.targets) == targets


async def test_the_generation_rises_with_the_url_and_the_targets_only(api: Registry, workspace: str) -> None:
    names: dict[str, Any] = {"workspace_id": workspace, "agent_id": "helper"}
    await api.make_agent(workspace, "helper", targets=[BLUE, GREEN], generation=9)
    others = {"display_name": "Other", "price": PRICE, "settings": SETTINGS, "state": pb.AGENT_STATE_PAUSED}
    same = {"url": URL.upper().replace("HTTP", "http") + "/", "targets": [BLUE, GREEN]}
    steps: Sequence[tuple[dict[str, Any], int]] = [
        (others, 1),
        (same, 1),
        ({"targets": [GREEN, BLUE]}, 2),
        ({"url": URL + "/v2"}, 3),
        ({"url": URL + "/v2", "targets": [GREEN, BLUE]}, 3),
        ({"url": URL, "targets": [GREEN]}, 4),
        ({"generation": 77, "display_name": "Again"}, 4),
    ]
    for values, generation in steps:
        paths = [path for path in values if path != "generation"]
        agent = await update(api, paths, **values, **names)
        assert agent.generation == generation, values
    assert (await get(api, workspace, "helper")).generation == 4


async def test_a_target_obeys_the_workspaces_rules_for_urls_whenever_one_is_written(api: Registry) -> None:
    workspace_id = (await api.make_workspace("", namespace="acme")).workspace_id
    own, foreign = "http://a.acme.svc.cluster.local", "http://a.globex.svc.cluster.local"
    with invalid("agent.url"):
        await api.make_agent(workspace_id, "helper", url=foreign)
    with invalid("agent.targets[0].url"):
        await api.make_agent(workspace_id, "helper", url=own, targets=[pb.AgentTarget(name="x", url=foreign, weight=1)])
    await api.make_agent(workspace_id, "helper", url=own, targets=[pb.AgentTarget(name="x", url=own, weight=1)])
    moved = workspace_pb2.Workspace(workspace_id=workspace_id, namespace="globex")
    mask = FieldMask(paths=["namespace"])
    await api.workspaces.UpdateWorkspace(workspace_pb2.UpdateWorkspaceRequest(workspace=moved, update_mask=mask))
    names = {"workspace_id": workspace_id, "agent_id": "helper"}
    assert (await update(api, ["display_name"], display_name="Still there", **names)).url == own
    with invalid("agent.url"):
        await update(api, ["targets"], **names)


STATES = [pb.AGENT_STATE_DRAFT, pb.AGENT_STATE_PUBLISHED, pb.AGENT_STATE_PAUSED, pb.AGENT_STATE_GONE]


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
async def test_no_agent_becomes_a_draft_again_and_none_comes_back_that_was_gone(
    api: Registry, workspace: str, before: pb.AgentState.ValueType, after: pb.AgentState.ValueType
) -> None:
    names: dict[str, Any] = {"workspace_id": workspace, "agent_id": "helper"}
    await api.make_agent(workspace, "helper", state=pb.AGENT_STATE_DRAFT)
    await update(api, ["state"], state=before, **names)
    fixed = before != after and (before == pb.AGENT_STATE_GONE or after == pb.AGENT_STATE_DRAFT)
    if fixed:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_AGENT_STATE):
            await update(api, ["state"], state=after, **names)
    else:
        assert (await update(api, ["state"], state=after, **names)).state == after
    assert (await get(api, workspace, "helper")).state == (before if fixed else after)


async def test_what_was_seen_stands_beside_what_was_declared(api: Registry, workspace: str) -> None:
    declared = await api.make_agent(workspace, "helper", targets=[BLUE, GREEN], state=pb.AGENT_STATE_PAUSED)
    own, green = seen(COLD, message="scaled to zero"), seen(FAILING, target="green")
    answer = await report(api, workspace, green)
    assert (answer.outcome, answer.generation) == (RECORDED, 1)
    await report(api, workspace, own)
    found = await get(api, workspace, "helper")
    assert list(found.observations) == [own, green]
    listed = (await api.agents.ListAgents(pb.ListAgentsRequest(workspace_id=workspace))).agents
    assert list(listed) == [found]
    del found.observations[:]
    assert found == declared  # the etag and the time of the last update, too


async def test_the_later_observation_of_a_target_counts_whatever_comes_last(api: Registry, workspace: str) -> None:
    await api.make_agent(workspace, "helper")
    newest = seen(READY, at=10**9 + 5)
    for observation, outcome in (
        (seen(COLD, at=10**9 + 1), RECORDED),
        (newest, RECORDED),
        (newest, OLDER_OBSERVATION),
        (seen(FAILING, at=10**9 + 5), OLDER_OBSERVATION),
        (seen(FAILING, at=10**9 + 4), OLDER_OBSERVATION),
    ):
        assert (await report(api, workspace, observation)).outcome == outcome
    assert list((await get(api, workspace, "helper")).observations) == [newest]


async def test_a_late_report_about_an_older_generation_never_changes_a_newer_one(api: Registry, workspace: str) -> None:
    names: dict[str, Any] = {"workspace_id": workspace, "agent_id": "helper"}
    await api.make_agent(workspace, "helper", targets=[BLUE, GREEN])
    await report(api, workspace, seen(READY, target="blue"))
    moved = await update(api, ["targets"], targets=[GREEN], **names)
    assert (moved.generation, list(moved.observations)) == (2, [])
    assert list((await get(api, workspace, "helper")).observations) == []
    for target in ("", "blue", "green"):  # also of what is no target any more
        answer = await report(api, workspace, seen(FAILING, at=10**9 + 9, target=target))
        assert (answer.outcome, answer.generation) == (OLDER_GENERATION, 2)
    assert list((await get(api, workspace, "helper")).observations) == []
    now = seen(COLD, target="green", generation=2)
    assert (await report(api, workspace, now)).outcome == RECORDED
    assert list((await get(api, workspace, "helper")).observations) == [now]


async def test_only_another_state_is_a_change_with_a_revision(api: Registry, workspace: str) -> None:
    await api.make_agent(workspace, "helper")
    first = await report(api, workspace, seen(COLD))
    again = await report(api, workspace, seen(COLD, at=10**9 + 1, message="still"))
    assert (again.outcome, again.revision_token) == (RECORDED, first.revision_token)
    assert (await get(api, workspace, "helper")).observations[0].message == "still"
    ready = await report(api, workspace, seen(READY, at=10**9 + 2))
    assert ready.revision_token != first.revision_token
    late = await report(api, workspace, seen(COLD, at=10**9))
    assert (late.outcome, late.revision_token) == (OLDER_OBSERVATION, ready.revision_token)
    actions = [entry.action for entry in await api.trail(workspace)]
    assert actions == ["workspace.create", "agent.create", "agent.observe", "agent.observe"]


async def test_a_report_that_says_again_what_is_known_waits_for_nobody(
    api: Registry, owner: Connection, workspace: str
) -> None:
    await api.make_agent(workspace, "helper")
    await report(api, workspace, seen(COLD))
    async with owner.transaction():  # somebody changes something in the workspace, and takes long
        await owner.execute("SELECT FROM registry.workspaces WHERE workspace_id = $1 FOR UPDATE", workspace)
        assert (await report(api, workspace, seen(COLD, at=10**9 + 1))).outcome == RECORDED
        with refused(grpc.StatusCode.ABORTED, Reason.REASON_BUSY):
            await report(api, workspace, seen(READY, at=10**9 + 2))
    assert list((await get(api, workspace, "helper")).observations) == [seen(COLD, at=10**9 + 1)]


async def test_what_followers_are_told_of_an_agent(api: Registry, owner: Connection, workspace: str) -> None:
    names: dict[str, Any] = {"workspace_id": workspace, "agent_id": "helper"}
    await api.make_agent(workspace, "helper")
    await update(api, ["price"], price=PRICE, **names)
    await report(api, workspace, seen(COLD))
    await report(api, workspace, seen(COLD, at=10**9 + 1))
    await delete(api, workspace, "helper")
    query = "SELECT kind, agent_id, after FROM registry.changes WHERE workspace_id = $1 AND agent_id <> '' ORDER BY revision"
    found = await owner.fetch(query, workspace)
    assert [(row["kind"], row["agent_id"]) for row in found] == [
        ("agent", "helper"), ("route", "helper"), ("route", "helper"), ("agent", "helper"),
    ]  # fmt: skip
    assert pb.Agent.FromString(found[2]["after"]).observations == [seen(COLD)]
    assert found[3]["after"] is None


async def test_of_targets_that_were_no_observation_stays(api: Registry, owner: Connection, workspace: str) -> None:
    names: dict[str, Any] = {"workspace_id": workspace, "agent_id": "helper"}
    await api.make_agent(workspace, "helper")
    for generation in range(2, 6):
        targets = [pb.AgentTarget(name=f"{generation}-{index}", url=URL, weight=1) for index in range(3)]
        await update(api, ["targets"], targets=targets, **names)
        for target in targets:
            await report(api, workspace, seen(target=target.name, generation=generation))
    count = "SELECT count(*) FROM registry.agent_observations WHERE workspace_id = $1"
    assert await owner.fetchval(count, workspace) == 3


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"state": pb.OBSERVED_STATE_UNSPECIFIED}, "state"),
        ({"state": 17}, "state"),
        ({"generation": 0}, "generation"),
        ({"generation": -1}, "generation"),
        ({"generation": 2}, "generation"),
        ({"target": "green"}, "target"),
        ({"target": "x" * 64}, "target"),
        ({"message": "x" * 256}, "message"),
        ({"message": "a\nb"}, "message"),
        ({"observe_time": None}, "observe_time"),
        ({"observe_time": Timestamp(seconds=1)}, "observe_time"),
        ({"observe_time": Timestamp(seconds=10**9, nanos=-1)}, "observe_time"),
        ({"observe_time": Timestamp(seconds=int(time.time()) + 3600)}, "observe_time"),
    ],
)
async def test_bad_reports_are_refused_by_field(api: Registry, workspace: str, values: dict[str, Any], field: str) -> None:
    await api.make_agent(workspace, "helper", targets=[BLUE])
    with invalid(f"observation.{field}"):
        await report(api, workspace, seen(**values))
    with unknown(Reason.REASON_AGENT_UNKNOWN):
        await report(api, workspace, seen(), agent_id="nobody")
    with invalid("observation"):
        await api.agents.ReportAgentState(pb.ReportAgentStateRequest(workspace_id=workspace, agent_id="helper"))
    assert list((await get(api, workspace, "helper")).observations) == []


async def test_reports_and_updates_at_once_leave_what_one_after_the_other_would(api: Registry, workspace: str) -> None:
    await api.make_agent(workspace, "helper", targets=[BLUE, GREEN])
    draw = random.Random(7)
    observations = [
        seen(draw.choice([READY, COLD, FAILING]), at=10**9 + second, target=target)
        for second in range(20)
        for target in ("blue", "green")
    ]
    draw.shuffle(observations)
    await asyncio.gather(*(report(api, workspace, observation) for observation in observations))
    latest = [max((each for each in observations if each.target == name), key=_time) for name in ("blue", "green")]
    assert list((await get(api, workspace, "helper")).observations) == latest


def _time(observation: pb.AgentObservation) -> int:
    return observation.observe_time.seconds


async def ids(api: Registry, workspace_id: str, **values: Any) -> list[str]:
    """The agents that a listing finds, page by page."""
    request = pb.ListAgentsRequest(workspace_id=workspace_id, page_size=2, **values)
    found: list[str] = []
    while True:
        answer = await api.agents.ListAgents(request)
        found += [agent.agent_id for agent in answer.agents]
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


async def test_agents_are_listed_by_state_and_by_the_beginning_of_their_name(api: Registry, workspace: str) -> None:
    for agent_id, name, state in (
        ("c", "Blue", pb.AGENT_STATE_DRAFT),
        ("a", "Blueprint", pb.AGENT_STATE_PUBLISHED),
        ("e", "blue", pb.AGENT_STATE_PUBLISHED),
        ("b", "Bl\u00fce", pb.AGENT_STATE_PAUSED),
        ("d", "Blue \U0010ffff", pb.AGENT_STATE_PUBLISHED),
        ("f", "Blue%", pb.AGENT_STATE_PAUSED),
    ):
        await api.make_agent(workspace, agent_id, display_name=name, state=state)
    await update(api, ["state"], workspace_id=workspace, agent_id="f", state=pb.AGENT_STATE_GONE)
    await delete(api, workspace, "a")
    assert await ids(api, workspace) == ["b", "c", "d", "e", "f"]
    assert await ids(api, workspace, order_by="create_time desc", show_deleted=True) == ["f", "d", "b", "e", "a", "c"]
    assert await ids(api, workspace, state=pb.AGENT_STATE_PUBLISHED) == ["d", "e"]
    assert await ids(api, workspace, state=pb.AGENT_STATE_GONE) == ["f"]
    assert await ids(api, workspace, display_name_prefix="Blue") == ["c", "d", "f"]
    assert await ids(api, workspace, display_name_prefix="Blue", order_by="id desc", show_deleted=True) == [
        "f",
        "d",
        "c",
        "a",
    ]
    assert await ids(api, workspace, display_name_prefix="Blue ", state=pb.AGENT_STATE_PUBLISHED) == ["d"]
    assert await ids(api, workspace, display_name_prefix="Bl\u00fc", order_by="create_time") == ["b"]
    for nothing in ("_lue", "Blue_", "%", "Bluf"):
        assert await ids(api, workspace, display_name_prefix=nothing) == []
    with invalid("display_name_prefix"):
        await ids(api, workspace, display_name_prefix="x" * 256)
    with invalid("state"):
        await ids(api, workspace, state=9)


async def test_a_restored_agent_is_what_it_was_and_a_purged_one_leaves_nothing(
    api: Registry, owner: Connection, workspace: str
) -> None:
    names: dict[str, Any] = {"workspace_id": workspace, "agent_id": "helper"}
    await api.make_agent(workspace, "helper", targets=[BLUE], price=PRICE)
    await update(api, ["targets"], targets=[GREEN], **names)
    await report(api, workspace, seen(COLD, generation=2))
    before = await update(api, ["state"], state=pb.AGENT_STATE_GONE, **names)
    await delete(api, workspace, "helper")
    with unknown(Reason.REASON_AGENT_UNKNOWN):
        await report(api, workspace, seen(READY, generation=2, at=10**9 + 1))
    after = (await api.agents.UndeleteAgent(pb.UndeleteAgentRequest(**names))).agent
    for told in (before, after):
        told.ClearField("etag")
        told.ClearField("update_time")
    assert (after, after.generation, list(after.observations)) == (before, 2, [seen(COLD, generation=2)])
    await delete(api, workspace, "helper")
    await api.agents.PurgeAgent(pb.PurgeAgentRequest(**names))
    query = "SELECT count(*) FROM registry.agent_observations WHERE workspace_id = $1"
    assert await owner.fetchval(query, workspace) == 0
    left = await owner.fetchrow(
        "SELECT url, target_urls, target_names FROM registry.agents WHERE workspace_id = $1", workspace
    )
    assert left is not None
    assert tuple(left) == ("", [], [])


async def test_an_update_that_is_only_validated_moves_no_generation(api: Registry, workspace: str) -> None:
    names: dict[str, Any] = {"workspace_id": workspace, "agent_id": "helper"}
    made = await api.make_agent(workspace, "helper")
    request = pb.UpdateAgentRequest(
        agent=pb.Agent(targets=[BLUE], **names), update_mask=FieldMask(paths=["targets"]), validate_only=True
    )
    assert (await api.agents.UpdateAgent(request)).agent.generation == 2
    assert await get(api, workspace, "helper") == made
    request.agent.targets[0].url = "http://127.0.0.1"
    with invalid("agent.targets[0].url"):
        await api.agents.UpdateAgent(request)


# The domain by itself, against a model.

TARGETS = some.lists(
    some.builds(
        Target, some.sampled_from(["a", "b", "c"]), some.sampled_from(["http://x", "http://y"]), some.integers(1, 2)
    ),
    max_size=2,
    unique_by=lambda target: target.name,
).map(tuple)
EDITS = some.fixed_dictionaries(
    {},
    optional={
        "url": some.sampled_from(["http://x", "http://y"]),
        "targets": TARGETS,
        "display_name": some.sampled_from(["A", "B"]),
        "state": some.sampled_from(list(AgentState)),
        "price": some.builds(Price, some.integers(0, 2)),
        "settings.model": some.sampled_from(["s", "m"]),
    },
).filter(bool)
OBSERVATIONS = some.tuples(
    some.sampled_from(["", "a", "b", "c"]), some.sampled_from(list(ObservedState)), some.integers(-2, 0), some.integers(0, 5)
)


def plain_agent() -> Agent:
    limits = AgentSettings("", "m", ContextDelivery.INSTRUCTIONS, 1, 1, timedelta(1), timedelta(1))
    return Agent("w", "a", "A", "http://x", (), 1, Price(), AgentState.DRAFT, limits)


@settings(deadline=None, max_examples=300)
@given(some.lists(EDITS | OBSERVATIONS, max_size=20))
def test_the_generation_counts_the_changes_of_url_and_targets_and_observations_are_of_the_current_one(
    steps: list[dict[str, Any] | tuple[str, ObservedState, int, int]],
) -> None:
    agent = plain_agent()
    places: list[tuple[str, tuple[Target, ...]]] = [(agent.url, agent.targets)]
    known: dict[str, Observation] = {}
    for step in steps:
        if isinstance(step, dict):
            try:
                edited = agent.edited(Edit(step))
            except AgentStateFixed:
                assert agent.state is AgentState.GONE or step["state"] is AgentState.DRAFT
                continue
            if (edited.url, edited.targets) != places[-1]:
                places.append((edited.url, edited.targets))
                known = {}
            agent = edited
        else:
            target, state, behind, second = step
            sight = Observation(target, state, agent.generation + behind, datetime(2020, 1, 1, 0, 0, second, tzinfo=UTC), "")
            names = {"", *(each.name for each in agent.targets)}
            if sight.generation < 1 or (behind == 0 and target not in names):
                continue
            outcome = agent.observed(sight)
            if behind < 0:
                assert outcome is ReportOutcome.OLDER_GENERATION
            elif target in known and known[target].observed_at >= sight.observed_at:
                assert outcome is ReportOutcome.OLDER_OBSERVATION
            else:
                assert isinstance(outcome, Agent)
                agent, known[target] = outcome, sight
        assert agent.generation == len(places)
        assert {each.target: each for each in agent.observations} == known
        assert len(agent.observations) == len(known)
