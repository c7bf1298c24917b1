"""What a turn costs beside its agent: time to the first token and to the end, through `Run` and by a direct call."""

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import aiohttp

from benchmarks import threads
from benchmarks.comparing import Operation
from benchmarks.places import Place
from benchmarks.rows import Figure, Json
from twofold.registry.v1 import agent_pb2, permission_pb2
from twofold.router.v1 import turn_pb2

_TURNS = 200
_WARM_UP = 20
_AT_ONCE = 16
_SAID = "What did I say first?"

Timed = tuple[float, float]
"""Seconds to the first token, and to the end."""


@contextlib.asynccontextmanager
async def _agent() -> AsyncIterator[str]:
    """The demo agent in a process of its own: it answers at once, word by word."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "twofold_cli.demo_agent", "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()


async def _known(place: Place, url: str) -> str:
    """An agent of this measurement's own."""
    agent = agent_pb2.Agent(workspace_id=threads.WORKSPACE, display_name="Talker", url=url)
    agent_id = (await place.twofold.agents.CreateAgent(agent_pb2.CreateAgentRequest(agent=agent))).agent.agent_id
    grant = permission_pb2.AgentGrant(workspace_id=threads.WORKSPACE, user_id="user", agent_id=agent_id)
    await place.twofold.permissions.Grant(permission_pb2.GrantRequest(grant=grant))
    return agent_id


async def _directly(session: aiohttp.ClientSession, url: str) -> Timed:
    body = {"model": "m", "messages": [{"role": "user", "content": _SAID}], "stream": True}
    began, first = time.perf_counter(), 0.0
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        async for line in response.content:
            if not first and b'"content":' in line and b'"content":""' not in line:
                first = time.perf_counter() - began
    return first, time.perf_counter() - began


async def _run(place: Place, agent_id: str, thread_id: str) -> Timed:
    request = turn_pb2.RunRequest(
        workspace_id=threads.WORKSPACE, user_id="user", agent_id=agent_id, thread_id=thread_id, message=_SAID
    )
    began, first = time.perf_counter(), 0.0
    async for event in place.twofold.turns.Run(request):
        if not first and event.HasField("delta"):
            first = time.perf_counter() - began
    return first, time.perf_counter() - began


async def _alone(place: Place, *, kept: bool) -> Json:
    """One after the other, a direct call and a turn by turns: medians."""
    async with _agent() as url, aiohttp.ClientSession() as session:
        agent_id = await _known(place, url)
        direct, turns = [], []
        for number in range(_WARM_UP + _TURNS):
            one, other = await _directly(session, url), await _run(place, agent_id, f"bench-{number}" if kept else "")
            if number >= _WARM_UP:
                direct.append(one)
                turns.append(other)
    return {
        "direct_first_token_ms": _median_ms([first for first, _ in direct]),
        "direct_total_ms": _median_ms([total for _, total in direct]),
        "run_first_token_ms": _median_ms([first for first, _ in turns]),
        "run_total_ms": _median_ms([total for _, total in turns]),
    }


async def _many(place: Place) -> Json:
    """So many conversations at once, each turn after turn: turns in a second, and the same of direct calls."""
    async with _agent() as url, aiohttp.ClientSession() as session:
        agent_id = await _known(place, url)
        rates: dict[str, float] = {}
        calls: Sequence[tuple[str, Callable[[int], Awaitable[Timed]]]] = (
            ("direct_per_s", lambda _: _directly(session, url)),
            ("run_per_s", lambda number: _run(place, agent_id, f"bench-many-{number}")),
        )
        for name, call in calls:

            async def talk(number: int, call: Callable[[int], Awaitable[Timed]] = call) -> None:
                for _ in range(_TURNS // _AT_ONCE):
                    await call(number)

            await asyncio.gather(*(call(number) for number in range(_AT_ONCE)))
            began = time.perf_counter()
            await asyncio.gather(*(talk(number) for number in range(_AT_ONCE)))
            rates[name] = round(_TURNS // _AT_ONCE * _AT_ONCE / (time.perf_counter() - began), 1)
    return dict(rates)


async def _figure(id_: str, what: str, values: Awaitable[Json], note: str) -> Figure:
    return Figure(id_, what, await values, note)


def _median_ms(seconds: Sequence[float]) -> float:
    return round(statistics.median(seconds) * 1000, 2)


_DEMO = "the demo agent, which answers at once; medians of turns one after the other, beside direct calls to it"
OPERATIONS: Sequence[Operation] = (
    Operation(
        "T1",
        lambda place: _figure(
            "T1", "a turn that is kept", _alone(place, kept=True), f"{_DEMO}; each in a new conversation, usage recorded"
        ),
    ),
    Operation(
        "T2",
        lambda place: _figure("T2", "a turn without a conversation", _alone(place, kept=False), f"{_DEMO}; usage recorded"),
    ),
    Operation(
        "T3",
        lambda place: _figure(
            "T3",
            f"{_AT_ONCE} conversations at once",
            _many(place),
            "whole turns, kept and recorded, beside direct calls to the demo agent, which shares the machine",
        ),
    ),
)
