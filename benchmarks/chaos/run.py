"""One schedule: load with faults, then calm, then the judgement."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import grpc

from benchmarks.chaos import faults, stores
from benchmarks.chaos.clients import OPTIONS, WORKSPACE, Appetite, Client, Worker, read_window, request_of
from benchmarks.chaos.history import History, Promise, Texts, Told
from benchmarks.chaos.judge import Verdict, judge
from benchmarks.chaos.schedules import Plan
from benchmarks.chaos.stack import Stack
from twofold.memory.v1 import conversation_pb2 as pb
from twofold_memory.wire.messages import appended_turn

_CLIENTS = 8
_SHARED_THREADS = 3
# What is journaled is in Postgres 10 s after the faults have ended; ten times as much decides.
OVERDUE_S = 100.0
# Nothing waits in Redis for so long, and what a worker holds comes back within half a second: then it is nowhere.
_NOWHERE_S = 8.0
_POLL_S = 0.2
_CALM_S = 30.0
_LAST_WINDOW = 100


@dataclass(frozen=True)
class Result:
    """What one schedule was and showed. `settled_s`: how long after the faults the last journaled turn was in Postgres."""

    plan: Plan
    faults: Sequence[tuple[str, int, float, float]]
    counts: Counter[str]
    settled_s: float
    verdict: Verdict

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "seed": self.plan.seed,
            "kind": self.plan.kind,
            "seconds": self.plan.seconds,
            "faults": [
                {"name": name, "worker": worker, "since_s": since, "until_s": until}
                for name, worker, since, until in self.faults
            ],
            "counts": dict(self.counts),
            "settled_s": round(self.settled_s, 2),
            "excused": dict(self.verdict.excused),
            "violations": [asdict(violation) for violation in self.verdict.violations],
        }


async def run(
    stack: Stack, plan: Plan, *, appetite: Appetite | None = None, clients: int = _CLIENTS, overdue_s: float = OVERDUE_S
) -> Result:
    """Runs one schedule. The stack is up and well before and after."""
    history, chance = History(), random.Random(f"load {plan.seed}")
    shared = [f"{plan.seed}-shared-{index}" for index in range(_SHARED_THREADS)]
    own = [f"{plan.seed}-own-{index}" for index in range(clients)]
    async with AsyncExitStack() as undo:
        stubs = []
        for worker in stack.workers:
            channel = await undo.enter_async_context(grpc.aio.insecure_channel(worker.process.target, options=OPTIONS))
            stubs.append(Worker(channel))
        people = [Client(stubs, history, random.Random(chance.random()), shared, name, appetite) for name in own]
        enough = asyncio.Event()
        watching = asyncio.create_task(stores.watch(stack, shared + own, history, random.Random(chance.random()), enough))
        until = asyncio.get_running_loop().time() + plan.seconds
        try:
            async with asyncio.TaskGroup() as group:
                inflicted = group.create_task(faults.inflict(stack, plan, history))
                for person in people:
                    group.create_task(person.run(until))
            settled_s = await _calmed(stack, history, overdue_s)
        finally:
            enough.set()  # not cancelled: libraries take a cancellation that meets their own timeout for that
            await watching
        await _last_samples(stack, history)
        await _last_reads(stubs, history)
    threads = {attempt.thread for attempt in history.attempts}
    verdict = judge(history, await stores.stored(stack, threads, _payloads(history)))
    return Result(plan, inflicted.result().faults, _counts(history, people), settled_s, verdict)


async def _calmed(stack: Stack, history: History, overdue_s: float) -> float:
    """Returns when Postgres knows of all journaled turns, or there is no hope: after how many seconds."""
    began = asyncio.get_running_loop().time()
    journaled = {(attempt.thread, attempt.turn_id) for attempt in history.attempts if attempt.told is Told.JOURNALED}
    threads = sorted({thread for thread, _ in journaled})
    seen_waiting = began
    while True:
        now = asyncio.get_running_loop().time()
        missing = journaled - await stores.settled(stack, threads) if journaled else set()
        waiting = [
            (thread, turn_id)
            for thread in {thread for thread, _ in missing}
            for turn_id in await stores.waiting(stack, thread)
            if (thread, turn_id) in missing
        ]
        if waiting:
            seen_waiting = now
        if waiting and now - began > overdue_s:
            history.overdue += waiting
        if not missing or now - began > overdue_s or now - seen_waiting > _NOWHERE_S:
            return now - began
        await asyncio.sleep(_POLL_S)


async def _last_reads(stubs: Sequence[Worker], history: History) -> None:
    """Every worker must be able to say all of every thread, now that nothing disturbs."""
    until = asyncio.get_running_loop().time() + _CALM_S
    for thread in sorted({attempt.thread for attempt in history.attempts if attempt.acknowledged}):
        for number, stub in enumerate(stubs):
            request = pb.ReadWindowRequest(workspace_id=WORKSPACE, thread_id=thread, message_count_max=_LAST_WINDOW)
            while not await _is_said(stub, number, request, history):
                if asyncio.get_running_loop().time() > until:
                    history.stuck.append((thread, f"worker {number} cannot say all of it, {_CALM_S:g} s after the faults"))
                    return
                await asyncio.sleep(_POLL_S)


async def _is_said(stub: Worker, number: int, request: pb.ReadWindowRequest, history: History) -> bool:
    before = len(history.reads)
    await read_window(stub, number, request, history)
    return any(read.promise in (Promise.COMPLETE, Promise.MISSING) for read in history.reads[before:])


async def _last_samples(stack: Stack, history: History) -> None:
    """The copies as they stay; of a deleted conversation none may."""
    deleted = {gone.thread for gone in history.deletions if gone.answered is not None}
    until = asyncio.get_running_loop().time() + _CALM_S
    for thread in sorted({attempt.thread for attempt in history.attempts}):
        found = await stores.sample(stack, thread)
        while thread in deleted and found is not None and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(_POLL_S)
            found = await stores.sample(stack, thread)
        if found is None:
            continue
        problem = f"the copy of a deleted conversation is there, {_CALM_S:g} s after the faults" if thread in deleted else ""
        history.samples.append(replace(found, problem=found.problem or problem))


def _payloads(history: History) -> dict[tuple[str, bytes], Texts]:
    sent = {(attempt.thread, attempt.turn_id, attempt.texts) for attempt in history.attempts}
    return {
        (turn_id, appended_turn(request_of(thread, turn_id, texts)).payload_hash): texts for thread, turn_id, texts in sent
    }


def _counts(history: History, people: Sequence[Client]) -> Counter[str]:
    counts = Counter(f"appends {attempt.told.value}" for attempt in history.attempts)
    counts.update(f"reads {read.promise.value}" for read in history.reads)
    counts["reads with token"] = sum(read.token is not None for read in history.reads)
    counts["deletions"] = len(history.deletions)
    counts["edits"] = len(history.edits)
    counts["windows sampled"] = len(history.samples)
    counts["data losses of Redis"] = len(history.losses)
    counts["calls"] = sum(person.calls for person in people)
    return counts
