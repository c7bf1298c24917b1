"""Many users who may use every agent of their workspace, made at once: what is measured is not how they are made."""

import asyncpg

from benchmarks.places import Place
from twofold.registry.v1 import agent_pb2, user_pb2, workspace_pb2

_USERS = """
    INSERT INTO registry.users SELECT made.* FROM registry.users u, generate_series(1, $2) n,
    jsonb_populate_record(u, jsonb_build_object('user_id', 'user-' || n, 'email', 'user-' || n || '@example.com')) made
    WHERE u.workspace_id = $1 AND u.user_id = 'user-0'
"""


async def make(place: Place, workspace_id: str, user_count: int, agent_ids: list[str]) -> list[str]:
    """A workspace of its own with these agents; the ids of its users."""
    twofold = place.twofold
    workspace = workspace_pb2.Workspace(workspace_id=workspace_id, display_name="Crowd")
    await twofold.workspaces.CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(workspace=workspace))
    for agent_id in agent_ids:
        agent = agent_pb2.Agent(
            workspace_id=workspace_id,
            agent_id=agent_id,
            display_name="Agent",
            url="http://agent.bench.svc.cluster.local",
            state=agent_pb2.AGENT_STATE_PUBLISHED,
        )
        await twofold.agents.CreateAgent(agent_pb2.CreateAgentRequest(agent=agent))
    user = user_pb2.User(workspace_id=workspace_id, user_id="user-0", email="user-0@example.com", role=user_pb2.ROLE_ADMIN)
    await twofold.users.CreateUser(user_pb2.CreateUserRequest(user=user))
    connection = await asyncpg.connect(place.stack.postgres.owner_url)
    await connection.execute(_USERS, workspace_id, user_count)
    await connection.execute("ANALYZE registry.users")
    await connection.close()
    return [f"user-{number}" for number in range(1, user_count + 1)]
