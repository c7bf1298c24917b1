"""What is measured of the registry: checks, changes, and those who follow them, lists."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import asyncpg
import grpc

from benchmarks import threads
from benchmarks.comparing import MANY, Operation, against_echo, subject
from benchmarks.places import Place, server_of
from benchmarks.rows import Comparison, Figure, Json, Server
from twofold.registry.v1 import agent_pb2, change_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold.registry.v1.change_pb2_grpc import ChangeServiceStub

BATCH = 100
AGENTS = 100_000
_PAGE = 100
WATCHERS = 20
CHANGES = 1000
_WRITERS = 8
_PERMISSIONS = "/twofold.registry.v1.PermissionService"
_AGENTS = "/twofold.registry.v1.AgentService"
_URL = "http://agent.bench.svc.cluster.local"
_LISTED = "listed"


async def _check(place: Place, id_: str, callers: int, goal: float | None) -> Comparison:
    request = permission_pb2.CheckRequest(workspace_id=threads.WORKSPACE, user_id="user", agent_id="agent")
    answer = await place.twofold.permissions.Check(request)
    assert answer.allowed
    mine = subject(_registry(place), f"{_PERMISSIONS}/Check", [request])
    note = "nothing is cached: each answer is read from Postgres after the call has come"
    return await against_echo(place, id_, "permission Check", mine, answer.ByteSize(), callers, goal, note)


async def _batch_check(place: Place) -> Comparison:
    request = permission_pb2.CheckRequest(workspace_id=threads.WORKSPACE, user_id="user", agent_id="agent")
    pairs = [permission_pb2.PermissionPair(user_id="user", agent_id=f"agent-{number}") for number in range(BATCH)]
    batch = permission_pb2.BatchCheckRequest(workspace_id=threads.WORKSPACE, pairs=pairs)
    mine = subject(_registry(place), f"{_PERMISSIONS}/BatchCheck", [batch])
    base = subject(_registry(place), f"{_PERMISSIONS}/Check", [request])
    return Comparison(
        "R2",
        f"BatchCheck of {BATCH}, checks",
        replace(mine, each=BATCH),
        base,
        "single checks, same run",
        MANY,
        15,
    )


async def _create(place: Place, id_: str, callers: int) -> Comparison:
    agent = agent_pb2.Agent(workspace_id=threads.WORKSPACE, display_name="Agent", url=_URL)
    request = agent_pb2.CreateAgentRequest(agent=agent)
    answer = (await place.twofold.agents.CreateAgent(request)).ByteSize()
    mine = subject(_registry(place), f"{_AGENTS}/CreateAgent", [request])
    note = "with audit, change and revision; all metadata writes share one head row: this is the ceiling of the installation"
    return await against_echo(place, id_, "CreateAgent", mine, answer, callers, None, note)


async def _last_page(place: Place) -> Comparison:
    last = await _many_agents(place)
    first = agent_pb2.ListAgentsRequest(workspace_id=_LISTED, page_size=_PAGE)
    method = f"{_AGENTS}/ListAgents"
    mine, base = subject(_registry(place), method, [last]), subject(_registry(place), method, [first])
    what = f"the last page of {_PAGE} of {AGENTS:,} agents"
    return Comparison("R4", what, mine, base, "the first page, same run", 1, 1.3)


async def _many_agents(place: Place) -> agent_pb2.ListAgentsRequest:
    """Makes them, and the request of their last page."""
    workspace = workspace_pb2.Workspace(workspace_id=_LISTED, display_name="Listed")
    await place.twofold.workspaces.CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(workspace=workspace))
    agent = agent_pb2.Agent(workspace_id=_LISTED, agent_id="agent-000000", display_name="Agent", url=_URL)
    await place.twofold.agents.CreateAgent(agent_pb2.CreateAgentRequest(agent=agent))
    connection = await asyncpg.connect(place.stack.postgres.owner_url)
    await connection.execute(
        "INSERT INTO registry.agents SELECT made.* FROM registry.agents a, generate_series(1, $1) n,"
        " jsonb_populate_record(a, jsonb_build_object('agent_id', 'agent-' || lpad(n::text, 6, '0'))) made"
        " WHERE a.workspace_id = $2 AND a.agent_id = 'agent-000000'",
        AGENTS - 1,
        _LISTED,
    )
    await connection.execute("ANALYZE registry.agents")
    await connection.close()
    request = agent_pb2.ListAgentsRequest(workspace_id=_LISTED, page_size=_PAGE)
    for _ in range(AGENTS // _PAGE - 1):
        request.page_token = (await place.twofold.agents.ListAgents(request)).next_page_token
    answer = await place.twofold.agents.ListAgents(request)
    assert (len(answer.agents), answer.next_page_token) == (_PAGE, "")
    return request


async def _watch(place: Place) -> Figure:
    """Delays from the moment at which the database wrote a change to its arrival at a watcher, all on this machine."""
    async with grpc.aio.insecure_channel(_registry(place).target) as channel:
        changes = ChangeServiceStub(channel)
        ready = [asyncio.Event() for _ in range(WATCHERS)]
        following = [asyncio.create_task(_follow(changes, event)) for event in ready]
        for event in ready:
            await event.wait()
        began = time.perf_counter()
        await asyncio.gather(*(_write(place, writer) for writer in range(_WRITERS)))
        wrote_s = time.perf_counter() - began
        delays = [delay for told in await asyncio.gather(*following) for delay in told]
    cuts = statistics.quantiles(delays, n=100)
    values: Json = {
        "deliveries": len(delays),
        "p50_ms": round(cuts[49], 2),
        "p99_ms": round(cuts[98], 2),
        "changes_per_s": round(CHANGES / wrote_s, 1),
    }
    note = f"{_WRITERS} writers as fast as they are answered; all watchers are in the process that also writes"
    return Figure("R5", f"{CHANGES:,} changes reach {WATCHERS} watchers", values, note)


async def _follow(changes: ChangeServiceStub, ready: asyncio.Event) -> Sequence[float]:
    call = changes.Watch()
    await call.write(change_pb2.WatchRequest(open=change_pb2.WatchOpen()))
    delays: list[float] = []
    async for told in call:
        if told.HasField("checkpoint"):
            ready.set()
        elif told.HasField("change") and ready.is_set():
            delays.append((time.time() - told.change.change_time.ToNanoseconds() / 1e9) * 1000)
            if len(delays) == CHANGES:
                break
    call.cancel()
    return delays


async def _write(place: Place, writer: int) -> None:
    for number in range(CHANGES // _WRITERS):
        name = f"watched-{writer}-{number}"
        user = user_pb2.User(workspace_id=threads.WORKSPACE, user_id=name, email=f"{name}@example.com")
        await place.twofold.users.CreateUser(user_pb2.CreateUserRequest(user=user))


def _registry(place: Place) -> Server:
    return server_of(place.stack.registry)


OPERATIONS: Sequence[Operation] = (
    Operation("R1", lambda place: _check(place, "R1", MANY, 0.50)),
    Operation("R1-alone", lambda place: _check(place, "R1-alone", 1, None)),
    Operation("R2", _batch_check),
    Operation("R3", lambda place: _create(place, "R3", 16)),
    Operation("R3-alone", lambda place: _create(place, "R3-alone", 1)),
    Operation("R4", _last_page),
    Operation("R5", _watch),
)
