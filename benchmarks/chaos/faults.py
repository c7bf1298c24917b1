"""Doing what a schedule says, and writing down what was done."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.chaos.history import Death, History, Span
from benchmarks.chaos.proxy import FaultProxy, Way
from benchmarks.chaos.schedules import Fault, Plan
from benchmarks.chaos.stack import CONFIRM_MS, REDIS_BUDGET_MS, Stack, Worker

# More than anybody waits: there and back, so half of it would do.
_SLOW_S = (0.0, 1.2 * CONFIRM_MS / 1000)
_SLOW_REDIS_S = (0.0, 1.5 * REDIS_BUDGET_MS / 1000)
_KEYS_AT_ONCE = 3


@dataclass
class Done:
    """What was done in one schedule: (name, worker, since, until), times from the begin of the load."""

    faults: list[tuple[str, int, float, float]] = field(default_factory=list)


async def inflict(stack: Stack, plan: Plan, history: History) -> Done:
    """Does all of it; at the end everything is up and well."""
    trouble = _Trouble(stack, history)
    try:
        async with asyncio.TaskGroup() as group:
            for track in plan.tracks:
                group.create_task(trouble.follow(track))
    finally:
        await stack.recover()
    return trouble.done


class _Trouble:
    def __init__(self, stack: Stack, history: History) -> None:
        self._stack = stack
        self._history = history
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self.done = Done()

    async def follow(self, track: Sequence[Fault]) -> None:
        """One track, each fault at its moment or as soon as the one before is over."""
        for fault in track:
            await asyncio.sleep(self._began + fault.at - self._loop.time())
            since = self._loop.time()
            await self._inflict(fault)
            self.done.faults.append(
                (fault.name, fault.worker, round(since - self._began, 3), round(self._loop.time() - self._began, 3))
            )

    async def _inflict(self, fault: Fault) -> None:
        target, _, what = fault.name.partition(" ")
        worker = self._stack.workers[fault.worker]
        match target, what:
            case "worker", "stop":
                worker.process.pause()
                await asyncio.sleep(fault.seconds)
                worker.process.resume()
            case "worker", "kill":
                await self._killed([worker], fault)
            case "all", _:
                await self._killed(self._stack.workers, fault)
            case "window", _:
                await self._evict(fault)
            case "postgres", "stop" | "immediate" | "kill" | "slow":
                await self._postgres(fault, what)
            case "redis", "stop" | "full" | "restart":
                await self._redis(fault, what)
            case "redis", "flush" | "kill" | "failover" | "split":
                since = self._loop.time()
                await self._lose(fault, what)
                self._history.losses.append(Span(since, self._loop.time()))
            case "postgres", _:
                await self._link(worker.to_postgres, fault, what, _SLOW_S)
            case "redis", _:
                await self._link(worker.to_redis, fault, what, _SLOW_REDIS_S)
            case _:
                raise AssertionError(f"{fault.name} is no fault")

    async def _link(self, proxy: FaultProxy, fault: Fault, what: str, slow_s: tuple[float, float]) -> None:
        match what:
            case "delay":
                proxy.delay(slow_s[0] + fault.dose * (slow_s[1] - slow_s[0]))
            case "hole":
                proxy.hold()
            case "requests held":
                proxy.hold(Way.REQUESTS)
            case "answers held":
                proxy.hold(Way.ANSWERS)
            case "swallow":
                proxy.swallow()
            case "swallow, silent":
                proxy.swallow(silent=True)
            case "cut":
                proxy.cut()
            case "reset":
                proxy.reset()
            case "refuse":
                await proxy.refuse()
                proxy.reset()
            case _:
                raise AssertionError(f"{fault.name} is no fault")
        if what not in ("cut", "reset"):
            await asyncio.sleep(fault.seconds)
            if fault.dose < 0.5:
                proxy.reset()  # what was held is lost, instead of arriving late
            await proxy.heal()

    async def _killed(self, workers: Sequence[Worker], fault: Fault) -> None:
        for worker in workers:
            self._history.deaths.append(Death(worker.number, self._loop.time()))
            await worker.process.kill()
        await asyncio.sleep(fault.seconds * fault.dose)
        await asyncio.gather(*(worker.restart() for worker in workers))

    async def _postgres(self, fault: Fault, what: str) -> None:
        server = self._stack.postgres
        match what:
            case "stop":
                server.pause()
                await asyncio.sleep(fault.seconds)
                server.resume()
            case "immediate":
                await self._stack.servers.stop_immediately()
                await asyncio.sleep(fault.seconds)
                await server.start()
            case "kill":
                await server.kill()
                await asyncio.sleep(fault.seconds)
                await server.start()
            case _:
                for worker in self._stack.workers:
                    worker.to_postgres.delay((0.6 + fault.dose) * CONFIRM_MS / 1000)
                await asyncio.sleep(fault.seconds)
                for worker in self._stack.workers:
                    await worker.to_postgres.heal()

    async def _redis(self, fault: Fault, what: str) -> None:
        pair = self._stack.redis
        match what:
            case "stop":
                pair.master.pause()
                await asyncio.sleep(fault.seconds)
                pair.master.resume()
            case "full":
                await pair.command("CONFIG", "SET", "maxmemory", 1)
                await asyncio.sleep(fault.seconds)
                await pair.command("CONFIG", "SET", "maxmemory", 0)
            case _:
                await pair.master.stop()  # in order: it loses nothing
                await asyncio.sleep(fault.seconds * fault.dose)
                await pair.master.start()

    async def _lose(self, fault: Fault, what: str) -> None:
        pair, workers = self._stack.redis, self._stack.workers
        match what:
            case "flush":
                await pair.command("FLUSHALL")
            case "kill":
                await pair.master.kill()
                await asyncio.sleep(fault.seconds * fault.dose)
                await pair.master.start()
            case "failover":
                pair.lag()
                await asyncio.sleep(fault.seconds)
                await pair.master.kill()
                await pair.promote()
                self._stack.lead_to_redis(*workers)
                await pair.reunite()
            case _:
                # For a while there are two masters: one worker still talks to the old one.
                pair.lag()
                await asyncio.sleep(fault.seconds / 2)
                await pair.promote()
                self._stack.lead_to_redis(*(other for other in workers if other.number != fault.worker))
                await asyncio.sleep(fault.seconds / 2)
                self._stack.lead_to_redis(workers[fault.worker])
                await pair.reunite()

    async def _evict(self, fault: Fault) -> None:
        """Takes one of the two keys of some windows away, as an eviction or an expiry does."""
        pair, chance = self._stack.redis, random.Random(fault.dose)
        for pattern in ("thread:*:messages", "thread:*:head"):
            keys = sorted(await pair.command("KEYS", pattern) or ())
            for key in chance.sample(keys, min(_KEYS_AT_ONCE, len(keys))):
                await pair.command("PEXPIRE", key, chance.choice((1, 50))) if fault.name == "window expire" else (
                    await pair.command("DEL", key)
                )
