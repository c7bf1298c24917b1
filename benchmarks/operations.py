"""The operations that are measured, and the data they need."""

from collections.abc import Sequence

from google.protobuf.message import Message

from benchmarks.rows import Operation
from twofold.client import Twofold
from twofold.memory.v1 import conversation_pb2, message_pb2
from twofold.registry.v1 import agent_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold.router.v1 import routing_pb2
from twofold_cli.embedded import ServiceProcess
from twofold_cli.stack import Stack

WORKSPACE = "bench"
THREADS = 8
MANY = 64
_TURNS = 40
_ASKED = "Could you tell me whether my order has been sent already? It is number 4711."
_ANSWERED = "It left our warehouse this morning and should be with you the day after tomorrow, before noon."


async def all_of(stack: Stack, twofold: Twofold) -> list[Operation]:
    """Prepares the data and describes the operations."""
    await _workspace(twofold)
    tokens = await _threads(twofold)
    resolve = routing_pb2.ResolveRequest(workspace_id=WORKSPACE, user_id="user", agent_id="agent")
    appends = [_append(f"append-{number}") for number in range(THREADS)]
    with_token = [_window(f"read-{number}", message_pb2.READ_LEVEL_AT_LEAST, token) for number, token in enumerate(tokens)]
    verified = [_window(f"read-{number}", message_pb2.READ_LEVEL_VERIFIED) for number in range(THREADS)]
    resolved = (await twofold.routing.Resolve(resolve)).ByteSize()
    appended = (await twofold.conversations.AppendTurn(appends[0])).ByteSize()
    window = (await twofold.conversations.ReadWindow(verified[0])).ByteSize()

    asks = "asks the registry each time until the change stream is there"
    routing, conversations = "/twofold.router.v1.RoutingService", "/twofold.memory.v1.ConversationService"
    kinds: list[tuple[str, str, str, Sequence[Message], int, ServiceProcess, float, float, str]] = [
        ("P1", "Resolve", f"{routing}/Resolve", [resolve], resolved, stack.router, 0.80, 1.6, asks),
        (
            "P3",
            "durable Append",
            f"{conversations}/AppendTurn",
            appends,
            appended,
            stack.memory,
            0.75,
            4,
            "",
        ),
        ("P5", "Window of 20 with a token", f"{conversations}/ReadWindow", with_token, window, stack.memory, 0.80, 1.7, ""),
        ("P5v", "Window of 20, verified", f"{conversations}/ReadWindow", verified, window, stack.memory, 0.65, 1.7, ""),
    ]
    found = []
    for number, what, method, requests, size, service, goal, alone_goal, note in kinds:
        bodies = [request.SerializeToString() for request in requests]
        metrics = f"http://127.0.0.1:{service.metrics_port}/metrics"
        where = (service.target, metrics, service.pid)
        found.append(Operation(number, what, method, bodies, MANY, size, *where, goal, note))
        found.append(Operation(f"P7-{number}", f"{what}, alone", method, bodies[:1], 1, size, *where, alone_goal, note))
    return found


async def _workspace(twofold: Twofold) -> None:
    workspace = workspace_pb2.Workspace(workspace_id=WORKSPACE, display_name="Bench")
    await twofold.workspaces.CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(workspace=workspace))
    user = user_pb2.User(workspace_id=WORKSPACE, user_id="user", email="user@example.com")
    await twofold.users.CreateUser(user_pb2.CreateUserRequest(user=user))
    agent = agent_pb2.Agent(
        workspace_id=WORKSPACE, agent_id="agent", display_name="Agent", url="http://agent.bench.svc.cluster.local"
    )
    await twofold.agents.CreateAgent(agent_pb2.CreateAgentRequest(agent=agent))
    grant = permission_pb2.AgentGrant(workspace_id=WORKSPACE, user_id="user", agent_id="agent")
    await twofold.permissions.Grant(permission_pb2.GrantRequest(grant=grant))


async def _threads(twofold: Twofold) -> list[bytes]:
    """Threads to read, with some past; the token of each one's end."""
    tokens = []
    for number in range(THREADS):
        for _ in range(_TURNS):
            answer = await twofold.conversations.AppendTurn(_append(f"read-{number}"))
        tokens.append(answer.thread_token)
    return tokens


def _append(thread_id: str) -> conversation_pb2.AppendTurnRequest:
    """An exchange; without a request_id, so that the same bytes sent again are another turn."""
    return conversation_pb2.AppendTurnRequest(
        workspace_id=WORKSPACE,
        thread_id=thread_id,
        user_id="user",
        messages=[
            message_pb2.Message(role=message_pb2.ROLE_USER, content=_ASKED),
            message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, content=_ANSWERED),
        ],
    )


def _window(
    thread_id: str, level: message_pb2.ReadLevel.ValueType, token: bytes = b""
) -> conversation_pb2.ReadWindowRequest:
    return conversation_pb2.ReadWindowRequest(
        workspace_id=WORKSPACE, thread_id=thread_id, message_count_max=20, read_level=level, thread_token=token
    )
