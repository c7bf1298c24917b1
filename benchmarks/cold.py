"""What is measured of what a router does not know yet: cold resolves, and the memory that it takes to know them."""

import asyncio
import statistics
import time

from benchmarks import crowds, echo, load, once
from benchmarks.comparing import Operation
from benchmarks.load import Load
from benchmarks.places import Place, server_of
from benchmarks.rows import (
    ROUND_S,
    ROUNDS,
    SPREAD_MAX,
    Figure,
    Json,
    counted,
    cpu_s_of,
    metrics_of,
    resident_mib,
)
from twofold.router.v1 import routing_pb2

COLD = 1000
PAIRS = 100_000
# Each asks the registry two things at a time, and a router has 64 questions under way.
CALLERS = 30
_USERS = 1000
_BATCH = 500
_BATCHES_AT_ONCE = 3
_SETTLE_S = 2
_TRIES = 5
_RESOLVE = "/twofold.router.v1.RoutingService/Resolve"
_FROM_REGISTRY = 'kind="permission",source="registry"'


async def _cold(place: Place) -> Figure:
    """Rounds of pairs that were never asked for, each beside a round of echoes."""
    users = await crowds.make(place, "cold", (1 + ROUNDS) * COLD, ["agent"])
    first = routing_pb2.ResolveRequest(workspace_id="cold", user_id="user-0", agent_id="agent")
    answer = await place.twofold.routing.Resolve(first)
    body, echoing = echo.request(first.ByteSize(), answer.ByteSize()), (await place.echo()).target
    rounds = []
    for number in range(1 + ROUNDS):
        bodies = [
            routing_pb2.ResolveRequest(workspace_id="cold", user_id=user_id, agent_id="agent").SerializeToString()
            for user_id in users[number * COLD : (number + 1) * COLD]
        ]
        before = await _state(place)
        seconds, latencies = await once.sent(place.router.target, _RESOLVE, bodies, CALLERS)
        after = await _state(place)
        base = await load.run(Load(echoing, echo.METHOD, [body], CALLERS), ROUND_S)
        if after[0] - before[0] != COLD:
            raise RuntimeError(f"COLD: of {COLD} pairs {after[0] - before[0]:.0f} were read from the registry")
        if number:  # the first one warms up
            cpu_us = [(new - old) / COLD * 1e6 for old, new in zip(before[1:], after[1:], strict=True)]
            rounds.append((COLD / seconds, base.rate, latencies, cpu_us))
    rates = [base for _, base, _, _ in rounds]
    steady = max(rates) / min(rates) <= SPREAD_MAX
    cuts = statistics.quantiles([latency for _, _, latencies, _ in rounds for latency in latencies], n=100)
    values: Json = {
        "over_echo": round(statistics.median(mine / base for mine, base, _, _ in rounds), 3) if steady else "not reported",
        "resolves_per_s": round(statistics.median(mine for mine, *_ in rounds)),
        "echo_calls_per_s": round(statistics.median(rates)),
        "p50_ms": round(cuts[49], 2),
        "p99_ms": round(cuts[98], 2),
        "router_cpu_us": round(statistics.median(cpu[0] for *_, cpu in rounds)),
        "registry_cpu_us": round(statistics.median(cpu[1] for *_, cpu in rounds)),
        "callers": CALLERS,
    }
    note = "each a user that was never asked for: permission and terms are looked for in Redis, and read from the registry"
    return Figure("COLD", f"cold Resolve, {COLD:,} pairs a round", values, note)


async def _state(place: Place) -> tuple[float, float, float]:
    """Permissions that were read from the registry, and the processor time of router and registry."""
    copies = counted(await metrics_of(place.router), "twofold_router_copies_total")
    read = sum(value for series, value in copies.items() if _FROM_REGISTRY in series)
    return read, cpu_s_of(place.router.pid), cpu_s_of(server_of(place.stack.registry).pid)


async def _pairs(place: Place) -> Figure:
    """What the router's process and Redis grow by, with as many pairs as a router keeps copies of."""
    agents = [f"agent-{number}" for number in range(PAIRS // _USERS)]
    users = await crowds.make(place, "pairs", _USERS, ["first", *agents])
    halves = [users[begin : begin + _BATCH] for begin in range(0, _USERS, _BATCH)]
    for half in halves:  # what is there once for each user or for the process is there before
        await _resolved(place, "first", half)
    before, before_redis = resident_mib(place.router.pid), await place.redis_used()
    waiting = iter([(agent_id, half) for agent_id in agents for half in halves])

    async def asker() -> None:
        for agent_id, half in waiting:
            await _resolved(place, agent_id, half)

    began = time.perf_counter()
    await asyncio.gather(*(asker() for _ in range(_BATCHES_AT_ONCE)))
    took_s = time.perf_counter() - began
    await asyncio.sleep(_SETTLE_S)  # copies are put into Redis behind the answers
    after, after_redis = resident_mib(place.router.pid), await place.redis_used()
    copies = after_redis[1] - before_redis[1]
    values: Json = {
        "router_bytes_per_pair": round((after - before) * 2**20 / PAIRS),
        "router_mib_in_all": round(after - before, 1),
        "redis_bytes_per_copy": round((after_redis[0] - before_redis[0]) / copies) if copies else "none",
        "redis_copies": copies,
        "pairs_per_s": round(PAIRS / took_s),
    }
    note = (
        f"{_USERS:,} users and {len(agents)} agents, cold, in batches of {_BATCH}; bounded: a router keeps at most "
        "ROUTER__COPIES_MAX permissions, routes and terms each, and Redis each copy for ten minutes"
    )
    return Figure("P12-pairs", f"memory of a cached pair, {PAIRS:,} of them", values, note)


async def _resolved(place: Place, agent_id: str, users: list[str]) -> None:
    """All of them; on a busy machine some may be told to ask again."""
    for _ in range(_TRIES):
        pairs = [routing_pb2.UserAgent(user_id=user_id, agent_id=agent_id) for user_id in users]
        request = routing_pb2.BatchResolveRequest(workspace_id="pairs", pairs=pairs)
        results = (await place.twofold.routing.BatchResolve(request, timeout=60)).results
        refusals = [result.refusal for result in results if result.HasField("refusal")]
        if not refusals:
            return
        await asyncio.sleep(refusals[0].retry_delay.ToMicroseconds() / 1e6)
    raise RuntimeError(f"P12-pairs: {len(refusals)} were refused, e.g. {refusals[0].message}")


OPERATIONS = (Operation("COLD", _cold), Operation("P12-pairs", _pairs))
