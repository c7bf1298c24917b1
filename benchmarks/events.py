"""What is measured of events: how many are told to ten subscribers, and what a subscriber costs that is told nothing."""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc

from benchmarks import echo, listening, load, threads
from benchmarks.comparing import MANY, Operation
from benchmarks.load import Load
from benchmarks.places import Place
from benchmarks.rows import ROUND_S, ROUNDS, SPREAD_MAX, Figure, Json, resident_mib
from twofold.router.v1 import event_pb2
from twofold.router.v1.event_pb2_grpc import EventServiceStub

SUBSCRIBERS = 10
BATCH = 20
IDLE = 1000
_GOAL = 3
_PAYLOAD = b'{"operation_id": "01a1fa7b-ab43-7177-91d3-c25ece87a7a1", "finish_reason": "stop", "output_tokens": 212}'
_PUBLISH = "/twofold.router.v1.EventService/Publish"
_SETTLE_S = 20
_PER_CONNECTION = 250
_IDLE_S = 5


class Heard(NamedTuple):
    """What subscribers were told so far, what they miss, and the delays of late."""

    told: int
    missing: int
    p50_ms: float
    p99_ms: float


class Listeners:
    """A process of subscribers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._ask, self._answer = process.stdin, process.stdout

    async def heard(self) -> Heard:
        """What they were told up to now."""
        self._ask.write(b"\n")
        told, missing, p50_ms, p99_ms = (await self._answer.readline()).split()
        return Heard(int(told), int(missing), float(p50_ms), float(p99_ms))

    async def heard_of(self, events: int) -> Heard:
        """What they were told once so many are told or announced as missing."""
        until = time.monotonic() + _SETTLE_S
        while (heard := await self.heard()).told + heard.missing < events:
            if time.monotonic() > until:
                raise RuntimeError(f"{events} events were published, and subscribers heard of {heard}")
            await asyncio.sleep(0.05)
        return heard


@asynccontextmanager
async def _listeners(target: str, agent_id: str) -> AsyncIterator[Listeners]:
    argv = (sys.executable, "-m", listening.__name__, target, threads.WORKSPACE, agent_id, str(SUBSCRIBERS))
    process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        if await process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{listening.__name__} did not start")
        yield Listeners(process)
    finally:
        process.kill()
        await process.wait()


async def _told(place: Place, id_: str, each: int) -> Figure:
    """Rounds of publishing as fast as it is answered, each beside a round of echoes."""
    agent_id = f"told-{each}"
    event = event_pb2.AgentEvent(type="turn.completed", content_type="application/json", payload=_PAYLOAD)
    request = event_pb2.PublishRequest(workspace_id=threads.WORKSPACE, agent_id=agent_id, events=[event] * each)
    answer = await place.twofold.agent_events.Publish(request)
    body, router = request.SerializeToString(), place.router.target
    echoed, echoing = echo.request(len(body), answer.ByteSize()), (await place.echo()).target
    rounds = []
    async with _listeners(router, agent_id) as listeners:
        for number in range(1 + ROUNDS):
            before = await listeners.heard()
            published = await load.run(Load(router, _PUBLISH, [body], MANY), ROUND_S)
            now = await listeners.heard()
            base = await load.run(Load(echoing, echo.METHOD, [echoed], MANY), ROUND_S)
            if number:  # the first one warms up
                rounds.append((published, base, before, now))
            after = await place.twofold.agent_events.Publish(request)
            await listeners.heard_of(SUBSCRIBERS * (after.last_offset - answer.last_offset))
        heard = await listeners.heard()
    ratios = [(now.told - before.told) / base.calls for _, base, before, now in rounds]
    rates = [base.rate for _, base, _, _ in rounds]
    steady = max(rates) / min(rates) <= SPREAD_MAX
    values: Json = {
        "times_echo": round(statistics.median(ratios), 2),
        "deliveries_per_s": round(statistics.median((now.told - before.told) / ROUND_S for _, _, before, now in rounds)),
        "echo_calls_per_s": round(statistics.median(rates)),
        "publishes_per_s": round(statistics.median(published.rate for published, *_ in rounds)),
        "publish_p50_ms": round(statistics.median(published.p50_ms for published, *_ in rounds), 2),
        "delay_p50_ms": round(statistics.median(now.p50_ms for *_, now in rounds), 2),
        "delay_p99_ms": round(statistics.median(now.p99_ms for *_, now in rounds), 2),
        "missing": heard.missing,
    }
    what = f"events told to {SUBSCRIBERS} subscribers / echo calls, {each} in a Publish, {MANY} publishers"
    note = (
        f"goal: {_GOAL}; told within the second of publishing, counted where they arrive; delays of the oldest in a message"
    )
    met = statistics.median(ratios) >= _GOAL if steady else None
    return Figure(id_, what, values, note, met)


async def _idle(place: Place) -> Figure:
    """Each follows an agent of its own, of which nothing is told."""
    pid, target = place.router.pid, place.router.target
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(IDLE // _PER_CONNECTION)]
    stubs: list[Any] = [EventServiceStub(channel) for channel in channels]
    warm = await _subscribed(stubs[0], "idle-first")
    before = resident_mib(pid)
    calls = await asyncio.gather(*(_subscribed(stubs[n % len(stubs)], f"idle-{n}") for n in range(IDLE)))
    await asyncio.sleep(_IDLE_S)  # the logs are looked at now and then, which is a part of it
    grown = resident_mib(pid) - before
    for call in (warm, *calls):
        call.cancel()
    for channel in channels:
        await channel.close()
    values: Json = {"kib_each": round(grown * 1024 / IDLE, 1), "mib_in_all": round(grown, 1)}
    note = "resident memory of the router, gRPC's own for a stream in it; each follows another agent, the worst case"
    return Figure("P12-subscribers", f"memory of an idle subscriber, {IDLE:,} of them", values, note)


async def _subscribed(events: Any, agent_id: str) -> Any:
    call = events.Subscribe()
    opening = event_pb2.SubscribeOpen(workspace_id=threads.WORKSPACE, agents=[event_pb2.SubscribeAgent(agent_id=agent_id)])
    await call.write(event_pb2.SubscribeRequest(open=opening))
    while not (await call.read()).HasField("caught_up"):
        pass
    return call


OPERATIONS: Sequence[Operation] = (
    Operation("P10", lambda place: _told(place, "P10", 1)),
    Operation("P10-batch", lambda place: _told(place, "P10-batch", BATCH)),
    Operation("P12-subscribers", _idle),
)
