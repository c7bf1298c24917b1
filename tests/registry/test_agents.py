from google.protobuf.duration_pb2 import Duration

from tests.registry.conftest import URL, Registry
from twofold.registry.v1 import agent_pb2 as pb


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
    read = await api.agents.GetAgent(pb.GetAgentRequest(workspace_id=workspace, agent_id="helper"))
    assert read.agent == agent
