"""`python -m benchmarks.chaos`: schedules of faults on Redis under load; writes build/chaos.json.

    make chaos SCHEDULES=20 SEED=7        the seed replays the same faults at the same moments, as far as a machine can

A schedule is a few seconds of load with faults, then the comparison with Postgres. Exit status 1 if anything was violated.
"""

import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path

import asyncpg
from rich.console import Console

from benchmarks.chaos import faults
from benchmarks.chaos.clients import WORKSPACE, Client
from benchmarks.chaos.history import History, Row, judge
from twofold.client import Twofold
from twofold_chassis.start import StartError
from twofold_cli.migrate import database_of
from twofold_cli.stack import Stack, bare_environment, raise_stack

REPORT = Path("build/chaos.json")
_CLIENTS = 8
_SHARED_THREADS = 3
_LOAD_S = 6.0


async def chaos(console: Console, seed: int, schedules: int) -> int:
    """Runs the schedules; returns the exit status."""
    violations: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    acknowledged = 0
    async with raise_stack(ephemeral=True, environment=bare_environment()) as stack:
        for number in range(schedules):
            with console.status(f"schedule {number + 1} of {schedules}, seed {seed + number}"):
                found, told, done = await _schedule(stack, seed + number)
            violations += found
            counts += told
            acknowledged += done
            words = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items())) or "nothing violated"
            console.print(f"seed {seed + number}: {sum(told.values())} faults, {done} turns acknowledged: {words}")
    report = {
        "seed": seed,
        "schedules": schedules,
        "faults": dict(counts),
        "acknowledged": acknowledged,
        "violations": dict(violations),
    }
    _write(report)
    console.print(f"{json.dumps(report)}\nwritten to {REPORT}")
    return 1 if violations else 0


async def _schedule(stack: Stack, seed: int) -> tuple[Counter[str], Counter[str], int]:
    chance = random.Random(seed)
    history, counts = History(), Counter[str]()
    shared = [f"shared-{seed}-{index}" for index in range(_SHARED_THREADS)]
    async with Twofold(registry=stack.registry.target, memory=stack.memory.target, router=stack.router.target) as twofold:
        clients = [
            Client(twofold, history, random.Random(chance.random()), [*shared, f"own-{seed}-{index}"])
            for index in range(_CLIENTS)
        ]
        until = asyncio.get_running_loop().time() + _LOAD_S
        async with asyncio.TaskGroup() as group:
            group.create_task(faults.trouble(stack.redis, chance, _LOAD_S, counts))
            for client in clients:
                group.create_task(client.run(until))
    threads = {append.thread for append in history.appends}
    stored = await _stored(stack, threads)
    return judge(history, stored), counts, sum(client.acknowledged for client in clients)


async def _stored(stack: Stack, threads: set[str]) -> dict[str, list[Row]]:
    connection = await asyncpg.connect(database_of(stack.environment).url.get_secret_value())
    try:
        rows = await connection.fetch(
            "SELECT thread_id, seq, turn_id, turn_index, content FROM memory.messages"
            " WHERE workspace_id = $1 AND thread_id = ANY ($2::text[]) ORDER BY thread_id, seq",
            WORKSPACE,
            list(threads),
        )
    finally:
        await connection.close()
    stored: dict[str, list[Row]] = {thread: [] for thread in threads}
    for row in rows:
        stored[row["thread_id"]].append(Row(row["seq"], row["turn_id"], row["turn_index"], row["content"]))
    return stored


def _write(report: dict[str, object]) -> None:
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    """The command."""
    seed = int(os.environ.get("SEED") or random.randrange(1_000_000))
    schedules = int(os.environ.get("SCHEDULES") or 3)
    console = Console(highlight=False, soft_wrap=True)
    try:
        raise SystemExit(asyncio.run(chaos(console, seed, schedules)))
    except StartError as error:
        console.print(f"chaos: {error}", markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
