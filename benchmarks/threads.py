"""The conversations that are measured: an exchange of ordinary size, and threads of any length."""

import asyncio
from collections.abc import Iterable

from benchmarks.words import ANSWERED, ASKED, WINDOW, check_exchanges
from twofold.client import Twofold
from twofold.memory.v1 import conversation_pb2, message_pb2
from twofold.registry.v1 import agent_pb2, permission_pb2, user_pb2, workspace_pb2

WORKSPACE = "bench"
_TURN_MESSAGES_MAX = 500
_AT_ONCE = 8


async def make_workspace(twofold: Twofold) -> None:
    """A workspace with a user who may use an agent."""
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


def append(thread_id: str, message_count: int = 2) -> conversation_pb2.AppendTurnRequest:
    """An exchange, or several as one turn; without a request_id, so that the same bytes sent again are another turn."""
    asked = message_pb2.Message(role=message_pb2.ROLE_USER, content=ASKED)
    answered = message_pb2.Message(role=message_pb2.ROLE_ASSISTANT, content=ANSWERED)
    return conversation_pb2.AppendTurnRequest(
        workspace_id=WORKSPACE,
        thread_id=thread_id,
        user_id="user",
        messages=[answered if index % 2 else asked for index in range(message_count)],
    )


def window(thread_id: str, token: bytes = b"") -> conversation_pb2.ReadWindowRequest:
    """The newest messages: at least as new as the token, or verified where there is none."""
    level = message_pb2.READ_LEVEL_AT_LEAST if token else message_pb2.READ_LEVEL_VERIFIED
    return conversation_pb2.ReadWindowRequest(
        workspace_id=WORKSPACE, thread_id=thread_id, message_count_max=WINDOW, read_level=level, thread_token=token
    )


def turn_sizes(message_count: int) -> list[int]:
    """How many messages each turn has that makes a thread of this length: exchanges while it is short, then large turns."""
    if message_count <= _TURN_MESSAGES_MAX:
        return [2] * (message_count // 2)
    # A window is cut at the beginning of a turn: the newest ones must be exchanges, as in a real conversation.
    large, rest = divmod(message_count - 2 * WINDOW, _TURN_MESSAGES_MAX)
    return [_TURN_MESSAGES_MAX] * large + ([rest] if rest else []) + [2] * WINDOW


async def make_thread(twofold: Twofold, thread_id: str, message_count: int) -> bytes:
    """Makes a thread of this length; the token of its end."""
    token = b""
    for size in turn_sizes(message_count):
        token = (await twofold.conversations.AppendTurn(append(thread_id, size))).thread_token
    return token


async def make_threads(twofold: Twofold, thread_ids: Iterable[str], message_count: int) -> list[bytes]:
    """Some at a time; the tokens of their ends, in order."""
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def one(thread_id: str) -> bytes:
        async with at_once:
            return await make_thread(twofold, thread_id, message_count)

    return list(await asyncio.gather(*map(one, thread_ids)))


async def check_window(
    twofold: Twofold, request: conversation_pb2.ReadWindowRequest, source: message_pb2.ReadSource.ValueType
) -> int:
    """That the window is what is meant to be measured; the size of the answer. Raises RuntimeError."""
    answer = await twofold.conversations.ReadWindow(request)
    check_exchanges([message.content for message in answer.messages])
    if answer.source != source:
        raise RuntimeError(f"{request.thread_id}: read from {message_pb2.ReadSource.Name(answer.source)}")
    return answer.ByteSize()
