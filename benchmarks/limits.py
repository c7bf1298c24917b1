"""What is measured of limits: what a resolve costs with some of them, and next to a library that only counts (P11)."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from benchmarks.comparing import MANY, Operation, against_echo, subject
from benchmarks.peers import comparison as peers
from benchmarks.peers.comparison import CannotRunError, Library, Result, Told, Worker
from benchmarks.places import Place
from benchmarks.rows import Comparison, Figure
from twofold.registry.v1 import agent_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold.router.v1 import limit_pb2, routing_pb2

_RESOLVE = "/twofold.router.v1.RoutingService/Resolve"
_NEVER_REACHED = 10**15
_KINDS = (
    workspace_pb2.LIMIT_KIND_USER_HOUR_MESSAGES,
    workspace_pb2.LIMIT_KIND_USER_MINUTE_MESSAGES,
    workspace_pb2.LIMIT_KIND_AGENT_HOUR_MESSAGES,
    workspace_pb2.LIMIT_KIND_WORKSPACE_DAY_MESSAGES,
    workspace_pb2.LIMIT_KIND_WORKSPACE_DAY_TOKENS,
    workspace_pb2.LIMIT_KIND_WORKSPACE_DAY_MICROS,
)
_NOTE = (
    "a ring of 12 cells for each limit, all or none, in one script with a record of the operation; each call is another one"
)
_ROUNDS = 3
_AGAIN_S = 0.1
_CALLERS = (1, MANY)
_ACTIONS = {
    "hit": "ours through gRPC, with permission, route and six meters",
    "count": "our counters alone, in the caller's process as well, six meters and an operation record",
}
_STRATEGIES = {
    "moving_window": "MovingWindowRateLimiter, exact",
    "sliding_window_counter": "SlidingWindowCounterRateLimiter, approximate",
}


async def _resolve(place: Place, id_: str, count: int, callers: int) -> Comparison:
    request = await _limited(place, count)
    answer = await place.twofold.routing.Resolve(request)
    assert (len(answer.limits), answer.limits_source) == (count, limit_pb2.LIMITS_SOURCE_COUNTED)
    mine = replace(
        subject(place.router, _RESOLVE, [request]), outcomes="twofold_router_copies_total", wanted='source="process"'
    )
    what = f"Resolve with {count} limit{'s' if count > 1 else ''}"
    return await against_echo(place, id_, what, mine, answer.ByteSize(), callers, None, _NOTE)


async def _limited(place: Place, count: int) -> routing_pb2.ResolveRequest:
    """A workspace with so many limits that are never reached, made once, and the request of one who may use its agent."""
    workspace_id, twofold = f"limited-{count}", place.twofold
    request = routing_pb2.ResolveRequest(workspace_id=workspace_id, user_id="user", agent_id="agent")
    found = await twofold.workspaces.BatchGetWorkspaces(
        workspace_pb2.BatchGetWorkspacesRequest(workspace_ids=[workspace_id])
    )
    if found.workspaces:
        return request
    limits = [workspace_pb2.Limit(kind=kind, amount=_NEVER_REACHED) for kind in _KINDS[:count]]
    workspace = workspace_pb2.Workspace(
        workspace_id=workspace_id, display_name="Limited", settings=workspace_pb2.WorkspaceSettings(limits=limits)
    )
    await twofold.workspaces.CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(workspace=workspace))
    user = user_pb2.User(workspace_id=workspace_id, user_id="user", email="user@example.com")
    await twofold.users.CreateUser(user_pb2.CreateUserRequest(user=user))
    agent = agent_pb2.Agent(
        workspace_id=workspace_id,
        agent_id="agent",
        display_name="Agent",
        url="http://agent.bench.svc.cluster.local",
        state=agent_pb2.AGENT_STATE_PUBLISHED,
    )
    await twofold.agents.CreateAgent(agent_pb2.CreateAgentRequest(agent=agent))
    grant = permission_pb2.AgentGrant(workspace_id=workspace_id, user_id="user", agent_id="agent")
    request.min_revision_token = (await twofold.permissions.Grant(permission_pb2.GrantRequest(grant=grant))).revision_token
    while (await twofold.routing.Resolve(request)).limits_source != limit_pb2.LIMITS_SOURCE_COUNTED:  # noqa: ASYNC110
        await asyncio.sleep(_AGAIN_S)  # the counters of a new workspace are being set up
    request.ClearField("min_revision_token")
    return request


async def peer_figures(place: Place, *, told: Told) -> list[Figure]:
    """P11 for limits: the library alone, in the caller's process; ours through gRPC, with permission and route."""
    await _limited(place, 1)
    async with AsyncExitStack() as undo:
        told("P11: limits")
        try:
            python = await peers.installed_soon("limits")
            theirs = await undo.enter_async_context(Worker(python, "limits_window", peers.environment("", place.redis_url)))
            ours = await undo.enter_async_context(Worker(sys.executable, "twofold_limits", _own_environment(place)))
        except CannotRunError as error:
            return [Figure("P11-limits", "the library limits", {"not_run": str(error)})]
        return [
            await _against(strategy, action, callers, theirs, ours, told)
            for strategy in _STRATEGIES
            for action in _ACTIONS
            for callers in _CALLERS
        ]


async def _against(strategy: str, action: str, callers: int, theirs: Worker, ours: Worker, told: Told) -> Figure:
    mine: list[Result] = []
    others: list[Result] = []
    for number in range(_ROUNDS + 1):
        told(f"P11: limits, {strategy}, {action}, {callers} callers, round {number} of {_ROUNDS}")
        one, other = await ours.measure(action, callers), await theirs.measure(f"hit_{strategy}", callers)
        if number:  # the first is to warm up
            mine.append(one)
            others.append(other)
    note = f"limits, async Redis, {_STRATEGIES[strategy]}: in the caller's process, one limit; {_ACTIONS[action]}"
    library = Library(f"limits-{strategy}", "limits_window", "limits", False, note)
    return peers.figure_of(library, action, callers, others, mine, None)


def _own_environment(place: Place) -> dict[str, str]:
    return peers.own_environment(place) | {"PEER_ROUTER": place.router.target, "PEER_REDIS": place.redis_url}


OPERATIONS: Sequence[Operation] = (
    *(
        Operation(f"L{count}", lambda place, count=count: _resolve(place, f"L{count}", count, MANY))  # type: ignore[misc]
        for count in (1, 3, 6)
    ),
    Operation("L1-alone", lambda place: _resolve(place, "L1-alone", 1, 1)),
)
