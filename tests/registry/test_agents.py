import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tests.registry.stubs import URL, Registry, invalid, lost, taken, unknown
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2 as pb
from twofold.registry.v1 import workspace_pb2

SETTINGS = pb.AgentSettings(
    instructions="Be brief.\nBe kind.",
    model="small",
    context_delivery=pb.CONTEXT_DELIVERY_MESSAGES,
    context_messages_max=7,
    context_tokens_max=900,
    first_token_timeout=Duration(seconds=1, nanos=500_000_000),
    turn_timeout=Duration(seconds=3600),
)


async def get(api: Registry, workspace_id: str, agent_id: str) -> pb.Agent:
    return (await api.agents.GetAgent(pb.GetAgentRequest(workspace_id=workspace_id, agent_id=agent_id))).agent


async def update(api: Registry, paths: list[str], **values: object) -> pb.Agent:
    request = pb.UpdateAgentRequest(agent=pb.Agent(**values), update_mask=FieldMask(paths=paths))  # type: ignore[arg-type]
    return (await api.agents.UpdateAgent(request)).agent


async def delete(api: Registry, workspace_id: str, agent_id: str, etag: str = "") -> None:
    await api.agents.DeleteAgent(pb.DeleteAgentRequest(workspace_id=workspace_id, agent_id=agent_id, etag=etag))


async def test_an_agent_is_created_with_its_defaults_filled_in(api: Registry, workspace: str) -> None:
    agent = await api.make_agent(workspace, "helper")
    assert (agent.url, agent.state) == (URL, pb.AGENT_STATE_PUBLISHED)
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
        ({"url": ""}, "url"),
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
