"""One schedule of the control plane: load with faults, then calm, then the judgement."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import grpc

from benchmarks.chaos.clients import OPTIONS
from benchmarks.chaos.control import faults, spenders
from benchmarks.chaos.control.callers import Caller
from benchmarks.chaos.control.eventing import Eventing, judge_events
from benchmarks.chaos.control.history import History, Token, Told
from benchmarks.chaos.control.holding import Holding, judge_sessions
from benchmarks.chaos.control.judge import Judgement, judge
from benchmarks.chaos.control.listeners import Listener, Publisher, hear_the_last
from benchmarks.chaos.control.pods import Pods, raise_pods
from benchmarks.chaos.control.spending import Spending, judge_spending
from benchmarks.chaos.control.world import Registry, Router, World
from benchmarks.chaos.control.writers import PAIRS, Appetite, Registries, Writer, furnish
from benchmarks.chaos.schedules import Plan
from twofold_chassis.clocks import boot_s

_WAITERS = 2
_CALLERS_EACH = 4
_CALM_S = 30.0


@dataclass(frozen=True)
class Result:
    """What one schedule was and showed. `answered_again_s`: how long after the faults each router could tell again."""

    plan: Plan
    faults: Sequence[tuple[str, int, float, float]]
    counts: Counter[str]
    answered_again_s: float
    judgement: Judgement

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seed": self.plan.seed,
            "kind": self.plan.kind,
            "seconds": self.plan.seconds,
            "faults": [
                {"name": name, "target": target, "since_s": since, "until_s": until}
                for name, target, since, until in self.faults
            ],
            "counts": dict(self.counts),
            "answered_again_s": round(self.answered_again_s, 3),
            "violations": [asdict(violation) for violation in self.judgement.violations],
        }


async def run(world: World, plan: Plan, *, appetite: Appetite | None = None) -> Result:
    """Runs one schedule. The world is up and well before and after."""
    workspace = f"chaos-{plan.kind}-{plan.seed}"
    seen = Seen(History(), Spending(spenders.LIMIT, len(world.routers)), Eventing(), Holding(world.times.pod_lease))
    async with AsyncExitStack() as undo:

        async def opened(part: Registry | Router) -> grpc.aio.Channel:
            return await undo.enter_async_context(grpc.aio.insecure_channel(part.process.target, options=OPTIONS))

        registries = [await opened(registry) for registry in world.registries]
        routers = [await opened(router) for router in world.routers]
        limited = f"limits-{workspace}"
        await furnish(Registries(registries[0]), workspace)
        await spenders.furnish(registries[0], limited)
        place = (limited, spenders.USERS[0], spenders.AGENT)
        pods = await undo.enter_async_context(raise_pods(world, seen.holding, place, world.folder / workspace))
        cast = _Cast(routers, registries, pods, seen, random.Random(f"load {plan.seed}"), workspace, appetite or Appetite())
        await cast.spenders[0].begin()
        for server in (world.servers.postgres, world.servers.redis):
            await world.servers.copy(server)
        await faults.open_era(world, seen.history, workspace, PAIRS)
        done, answered_again_s = await _played(world, plan, cast, workspace)
        await faults.close_era(world, seen.history, workspace, PAIRS, last=True)
    seen.history.aways = [*world.aways]
    world.aways.clear()
    judgement = await asyncio.to_thread(seen.judged, world.times.lease)
    judgement.counts += _counts(seen.history, world.times.lease)
    return Result(plan, done.faults, judgement.counts, answered_again_s, judgement)


class Seen(NamedTuple):
    """Everything that one schedule saw."""

    history: History
    spending: Spending
    eventing: Eventing
    holding: Holding

    def end(self) -> None:
        """Says to all what became of the servers."""
        history, spending = self.history, self.spending
        spending.losses, spending.kills = history.losses, history.kills
        spending.forgettings = [(era.since, era.begun) for era in history.eras[1:]]

    def judged(self, lease_s: float) -> Judgement:
        """All of it."""
        judgement = judge(self.history, lease_s)
        judgement.violations += judge_spending(self.spending)
        judgement.violations += judge_events(self.eventing)
        judgement.violations += judge_sessions(self.holding)
        judgement.counts += self.spending.counts() + self.eventing.counts() + self.holding.counts()
        return judgement


class _Cast:
    """Everybody who takes part in one schedule."""

    def __init__(
        self,
        routers: Sequence[grpc.aio.Channel],
        registries: Sequence[grpc.aio.Channel],
        pods: Pods,
        seen: Seen,
        chance: random.Random,
        workspace: str,
        appetite: Appetite,
    ) -> None:
        def drawn() -> random.Random:
            return random.Random(chance.random())

        self.seen, self.pods, self._routers, self._chance = seen, pods, routers, drawn()
        tokens: list[tuple[Token, bytes]] = []
        stubs = [Registries(channel) for channel in registries]
        # Who waits for all routers writes little meanwhile: the others never do.
        appetites = [appetite] * appetite.waiters + [appetite.patient()] * appetite.writers
        self._writers = [Writer(stubs, seen.history, drawn(), workspace, tokens, one) for one in appetites]
        self._callers = [
            Caller(number, channel, seen.history, drawn(), workspace, tokens)
            for number, channel in enumerate(routers)
            for _ in range(_CALLERS_EACH)
        ]
        self.spenders = [
            spenders.Spender(routers, registries, seen.spending, drawn(), f"limits-{workspace}")
            for _ in range(appetite.spenders)
        ]
        self._publisher = Publisher(routers, seen.eventing, drawn(), workspace)
        self._listeners = [
            Listener(number, channel, seen.eventing, drawn(), workspace, slow=slow)
            for number, channel in enumerate(routers)
            for slow in (False, True)
        ]

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Whoever only asks does so until the block ends."""
        enough = asyncio.Event()
        asking = [asyncio.create_task(caller.run(enough)) for caller in self._callers]
        listening = [asyncio.create_task(listener.run(enough)) for listener in self._listeners]
        try:
            yield
        finally:
            enough.set()
            for task in listening:
                task.cancel()
            await asyncio.gather(*asking)
            await asyncio.gather(*listening, return_exceptions=True)

    def begin(self, group: asyncio.TaskGroup, enough: asyncio.Event) -> None:
        """Whoever changes anything does so until it is enough."""
        for writer in self._writers:
            group.create_task(writer.run(enough))
        for spender in self.spenders:
            group.create_task(spender.run(enough))
        group.create_task(self._publisher.run(enough))
        group.create_task(self.pods.look(self._routers, self._chance, enough))

    async def settle(self) -> None:
        """Returns when all that was lost for a while is there again, or it is hopeless."""
        self.seen.end()
        await self.spenders[0].count()
        await hear_the_last(self._publisher, self._listeners, self.seen.eventing)
        await self.pods.settle(self._routers)
        self.pods.collect()


async def _played(world: World, plan: Plan, cast: _Cast, workspace: str) -> tuple[faults.Done, float]:
    """Load with faults, and then until all is well again: what was done, and how long that took."""
    history, enough = cast.seen.history, asyncio.Event()
    async with cast.asking():
        async with asyncio.TaskGroup() as group:
            cast.begin(group, enough)
            began = boot_s()
            done = await faults.inflict(world, cast.pods, plan, history, workspace, PAIRS)
            await asyncio.sleep(began + plan.seconds - boot_s())
            enough.set()
        answered_again_s = await _calmed(world, history)
        await cast.settle()
    return done, answered_again_s


async def _calmed(world: World, history: History) -> float:
    """Returns when every router has told something again: how long after the faults."""
    first: dict[int, float] = {}
    seen = 0
    while len(first) < len(world.routers):
        if boot_s() > history.calm + _CALM_S:
            lost = {router.number for router in world.routers} - first.keys()
            history.stuck.append(f"routers {sorted(lost)} cannot tell anything, {_CALM_S:g} s after the faults")
            return _CALM_S
        await asyncio.sleep(0.05)
        for answer in history.answers[seen:]:
            if answer.sent > history.calm and answer.told in (Told.ALLOWED, Told.DENIED):
                first.setdefault(answer.router, answer.came)
        seen = len(history.answers)
    return max(first.values()) - history.calm


def _counts(history: History, lease_s: float) -> Counter[str]:
    counts = Counter[str]()
    counts["answers"] = len(history.answers)
    counts["answers not to be relied on"] = sum(
        not answer.relied for answer in history.answers if answer.told is Told.ALLOWED
    )
    counts["answers with token"] = sum(answer.token is not None for answer in history.answers)
    for answer in history.answers:
        if answer.source:
            counts[f"from {answer.source.rpartition('_')[2].lower()}"] += 1
    counts["writes"] = len(history.writes)
    counts["writes that waited"] = sum(write.waited for write in history.writes)
    counts["changes"] = sum(len(era.changes) for era in history.eras)
    counts["histories"] = len(history.eras)
    counts["times out of reach for longer than a lease"] = sum(away.until - away.since > lease_s for away in history.aways)
    return counts
