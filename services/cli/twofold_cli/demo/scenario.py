"""`twofold demo`: one conversation through all three services; Redis is killed in the middle, and nothing is lost."""

import asyncio
import time
import uuid

import asyncpg
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from twofold.client import Twofold
from twofold.memory.v1 import conversation_pb2, message_pb2, preference_pb2
from twofold.registry.v1 import agent_pb2, audit_pb2, permission_pb2, usage_pb2, user_pb2, workspace_pb2
from twofold_cli.demo.agent_process import agent_process
from twofold_cli.demo.conversation import Conversation
from twofold_cli.demo.narrator import Narrator, took
from twofold_cli.migrate import database_of
from twofold_cli.stack import Stack, raise_stack
from twofold_cli.up import DEVELOPMENT

_AGENT = "concierge"
_HYDRATED_S = 10.0


async def demo(console: Console) -> int:
    """Returns the exit status: 0 if everything was as it must be."""
    narrator = Narrator(console)
    narrator.title("Twofold: one conversation, two memories. Redis will be killed, and nothing will be lost.\n")
    began = time.perf_counter()
    async with raise_stack(ephemeral=True, settings=DEVELOPMENT, warn=narrator.warn) as stack:
        own = ", ".join(server.name for server in stack.servers) or "the environment's servers"
        narrator.step("stack", f"{own}, registry, memory and router are up", took(time.perf_counter() - began))
        async with (
            Twofold(
                registry=stack.registry.target, memory=stack.memory.target, router=stack.router.target, actor="demo"
            ) as twofold,
            agent_process(stack) as url,
        ):
            await _tell(narrator, stack, twofold, url)
    if narrator.failures:
        narrator.step("result", f"{narrator.failures} checks failed", style="bold red")
        return 1
    narrator.step("result", "everything that was said is where it belongs", style="bold green")
    return 0


async def _tell(narrator: Narrator, stack: Stack, twofold: Twofold, url: str) -> None:
    workspace_id = f"acme-{uuid.uuid4().hex[:6]}"
    await _set_up(narrator, twofold, workspace_id, url)
    ada = Conversation(twofold, narrator, workspace_id, _AGENT, "ada", thread_id="first-talk")
    bob = Conversation(twofold, narrator, workspace_id, _AGENT, "bob", thread_id="bobs-talk")

    _expect(narrator, await ada.say("My name is Ada."), "Ada")
    with narrator.timed("preference", "ada prefers Python: kept in Postgres, copied to Redis"):
        await twofold.preferences.UpdatePreferences(
            preference_pb2.UpdatePreferencesRequest(
                workspace_id=workspace_id, user_id="ada", set={"preferred_language": "Python"}
            )
        )
    _expect(narrator, await ada.say("Which language should I use?"), "Python")
    _expect(narrator, await ada.say("What is my name?"), "Ada")
    narrator.check("permission", await bob.is_refused("Let me in."), "bob has no grant and is refused")

    await _without_redis(narrator, stack, ada)
    await _compare(narrator, stack, twofold, ada)


async def _set_up(narrator: Narrator, twofold: Twofold, workspace_id: str, url: str) -> None:
    with narrator.timed("workspace", f"{workspace_id}, users ada and bob, agent {_AGENT} at {url}"):
        await twofold.workspaces.CreateWorkspace(
            workspace_pb2.CreateWorkspaceRequest(
                workspace=workspace_pb2.Workspace(workspace_id=workspace_id, display_name="Acme")
            )
        )
        for name in ("ada", "bob"):
            await twofold.users.CreateUser(
                user_pb2.CreateUserRequest(
                    user=user_pb2.User(workspace_id=workspace_id, user_id=name, email=f"{name}@example.com")
                )
            )
        await twofold.agents.CreateAgent(
            agent_pb2.CreateAgentRequest(
                agent=agent_pb2.Agent(workspace_id=workspace_id, agent_id=_AGENT, display_name="Concierge", url=url)
            )
        )
    with narrator.timed("grant", f"ada may use {_AGENT}"):
        await twofold.permissions.Grant(
            permission_pb2.GrantRequest(
                grant=permission_pb2.AgentGrant(workspace_id=workspace_id, user_id="ada", agent_id=_AGENT)
            )
        )


async def _without_redis(narrator: Narrator, stack: Stack, ada: Conversation) -> None:
    if not any(server.name == "Redis" for server in stack.servers):
        narrator.step("redis", "is the environment's own: the demo does not kill it", style="yellow")
        return
    pid = stack.redis.pid
    await stack.redis.kill()
    narrator.step("redis", f"kill -9 {pid}: the fast memory is gone", style="bold red")
    _expect(narrator, await ada.say("What is my name?", degraded="no Redis"), "Ada")
    _expect(narrator, await ada.say("What did I say first?", degraded="no Redis"), "My name is Ada.")
    with narrator.timed("redis", "is back, with a window from before") as details:
        await stack.redis.start()
        details.append(f"pid {stack.redis.pid}")
    await _hydrated(narrator, ada)
    _expect(narrator, await ada.say("Which language should I use?"), "Python")
    _expect(narrator, await ada.say("What is my name?"), "Ada")


async def _hydrated(narrator: Narrator, ada: Conversation) -> None:
    """The old window lacks two turns: Postgres does not confirm it, and the next read replaces it."""
    seen: list[str] = []
    with narrator.timed("window", "the old window is not believed, and filled anew") as details:
        async with asyncio.timeout(_HYDRATED_S):
            while not seen or seen[-1] != "L1":
                window = await ada.twofold.conversations.ReadWindow(
                    conversation_pb2.ReadWindowRequest(workspace_id=ada.workspace_id, thread_id=ada.thread_id)
                )
                source = message_pb2.ReadSource.Name(window.source).removeprefix("READ_SOURCE_")
                if source not in seen:
                    seen.append(source)
                await asyncio.sleep(0.02)
        details.append(f"read from {', then '.join(seen)}: {len(window.messages)} messages")
    narrator.check("window", len(window.messages) == len(ada.said), "holds everything that was said")


async def _compare(narrator: Narrator, stack: Stack, twofold: Twofold, ada: Conversation) -> None:
    url = database_of(stack.environment).url.get_secret_value()
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT seq, role, content FROM memory.messages WHERE workspace_id = $1 AND thread_id = $2 ORDER BY seq",
            ada.workspace_id,
            ada.thread_id,
        )
    finally:
        await connection.close()
    kept = [(row["role"], row["content"]) for row in rows]
    narrator.check("postgres", kept == ada.said, f"holds the {len(kept)} messages that were said, word for word")
    numbers = [row["seq"] for row in rows]
    narrator.check("numbers", numbers == list(range(1, len(ada.said) + 1)), f"run from 1 to {len(ada.said)} without a gap")

    usage = await twofold.usage.GetUsage(
        usage_pb2.GetUsageRequest(
            workspace_id=ada.workspace_id,
            start_time=Timestamp(seconds=946_684_800),
            end_time=Timestamp(seconds=4_102_444_800),
        )
    )
    turns = len(ada.said) // 2
    told = f"{usage.events} turns, {usage.input_tokens} tokens in, {usage.output_tokens} out: each counted once"
    narrator.check("usage", usage.events == turns and usage.messages == turns, told)
    audit = await twofold.audit.ListAuditEntries(audit_pb2.ListAuditEntriesRequest(workspace_id=ada.workspace_id))
    actions = [entry.action for entry in reversed(audit.entries)]
    narrator.check("audit", len(actions) == 5, f"{len(actions)} changes, each with its entry: {', '.join(actions)}")


def _expect(narrator: Narrator, answer: str, part: str) -> None:
    if part not in answer:
        narrator.check("memory", False, f"the agent should have known: {part}")
