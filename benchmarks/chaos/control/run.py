"""One schedule of the control plane: load with faults, then calm, then the judgement."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any

import grpc

from benchmarks.chaos.clients import OPTIONS
from benchmarks.chaos.control import faults, spenders
from benchmarks.chaos.control.callers import Caller
from benchmarks.chaos.control.eventing import Eventing, judge_events
from benchmarks.chaos.control.history import History, Token, Told
from benchmarks.chaos.control.holding import Holding, judge_sessions
from benchmarks.chaos.control.judge import Judgement, judge
from benchmarks.chaos.control.listeners import Listener, Publisher, hear_the_last
from benchmarks.chaos.control.pods import raise_pods
from benchmarks.chaos.control.spending import Spending, judge_spending
from benchmarks.chaos.control.world import World
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
    history, chance, workspace = History(), random.Random(f"load {plan.seed}"), f"chaos-{plan.kind}-{plan.seed}"
    async with AsyncExitStack() as undo:

        async def opened(target: str) -> grpc.aio.Channel:
            return await undo.enter_async_context(grpc.aio.insecure_channel(target, options=OPTIONS))

        to_registries = [await opened(registry.process.target) for registry in world.registries]
        to_routers = [await opened(router.process.target) for router in world.routers]
        registries = [Registries(channel) for channel in to_registries]
        spending, spenders_workspace = Spending(spenders.LIMIT, len(world.routers)), f"limits-{workspace}"
        await furnish(registries[0], workspace)
        await spenders.furnish(to_registries[0], spenders_workspace)
        holding = Holding(world.times.pod_lease)
        pods = await undo.enter_async_context(
            raise_pods(world, holding, spenders_workspace, spenders.USERS[0], spenders.AGENT, world.folder / workspace)
        )
        await world.servers.copy(world.servers.postgres)
        await world.servers.copy(world.servers.redis)
        await faults.open_era(world, history, workspace, PAIRS)
        tokens: list[tuple[Token, bytes]] = []

        def drawn() -> random.Random:
            return random.Random(chance.random())

        # Who waits for all routers writes little meanwhile: the others never do.
        hunger = appetite or Appetite()
        hungers = [hunger] * hunger.waiters + [hunger.patient()] * hunger.writers
        writers = [Writer(registries, history, drawn(), workspace, tokens, one) for one in hungers]
        callers = [
            Caller(router.number, await opened(router.process.target), history, drawn(), workspace, tokens)
            for router in world.routers
            for _ in range(_CALLERS_EACH)
        ]
        spending_ones = [
            spenders.Spender(to_routers, to_registries, spending, drawn(), spenders_workspace)
            for _ in range(hunger.spenders)
        ]
        await spending_ones[0].begin()
        eventing = Eventing()
        publisher = Publisher(to_routers, eventing, drawn(), workspace)
        listeners = [
            Listener(router.number, channel, eventing, drawn(), workspace, slow=slow)
            for router, channel in zip(world.routers, to_routers, strict=True)
            for slow in (False, True)
        ]
        enough, heard = asyncio.Event(), asyncio.Event()
        written = asyncio.Event()
        asking = [asyncio.create_task(caller.run(enough)) for caller in callers]
        listening = [asyncio.create_task(listener.run(heard)) for listener in listeners]
        try:
            async with asyncio.TaskGroup() as group:
                for writer in writers:
                    group.create_task(writer.run(written))
                group.create_task(publisher.run(written))
                for spender in spending_ones:
                    group.create_task(spender.run(written))
                began = boot_s()
                group.create_task(pods.look(to_routers, drawn(), written))
                done = await faults.inflict(world, pods, plan, history, workspace, PAIRS)
                await asyncio.sleep(began + plan.seconds - boot_s())
                written.set()
            answered_again_s = await _calmed(world, history)
            spending.losses, spending.kills = history.losses, history.kills
            spending.forgettings = [(era.since, era.begun) for era in history.eras[1:]]
            await spending_ones[0].count()
            await hear_the_last(publisher, listeners, eventing, heard)
            await pods.settle(to_routers)
            pods.collect()
        finally:
            enough.set()
            for task in listening:
                task.cancel()
            await asyncio.gather(*asking)
            await asyncio.gather(*listening, return_exceptions=True)
        await faults.close_era(world, history, workspace, PAIRS, last=True)
    history.aways = [*world.aways]
    world.aways.clear()
    judgement = await asyncio.to_thread(judge, history, world.times.lease)
    judgement.violations += judge_spending(spending)
    judgement.counts += spending.counts()
    judgement.violations += judge_events(eventing)
    judgement.counts += eventing.counts()
    judgement.violations += judge_sessions(holding)
    judgement.counts += holding.counts()
    return Result(plan, done.faults, _counts(history, judgement, world.times.lease), answered_again_s, judgement)


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


def _counts(history: History, judgement: Judgement, lease_s: float) -> Counter[str]:
    counts = judgement.counts.copy()
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
