"""A process that measures one library when it is told to. Needs nothing but the standard library and the library itself.

It prints one line when it is ready, then reads a line a measurement and prints a line a result, all of them JSON.
"""

import asyncio
import inspect
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks import words

THREADS = 64
# Messages in a thread that is read; those that are appended to begin empty.
PAST = 40
_AT_ONCE = 8


def thread_name(action: str, number: int) -> str:
    """The thread that a caller uses: the same for every library."""
    return f"{action}-{number % THREADS}"


def serve(opened: Callable[[str, str], Coroutine[Any, Any, object]], *, converses: bool = True) -> None:
    """Serves until standard input ends. `opened` makes the peer from the URLs of Postgres and Redis.

    A peer is a library's own way of keeping conversations: `append(name)` adds one exchange to a thread, `read(name)` gives
    the contents of its newest 20 messages in order. Both are coroutine functions, or both are plain ones and run in threads.
    One that does not converse has other methods, and needs no threads.
    """
    asyncio.run(_serve(opened(os.environ["PEER_POSTGRES"], os.environ["PEER_REDIS"]), converses))


async def _serve(opening: Coroutine[Any, Any, object], converses: bool) -> None:
    try:
        peer = await opening
        if converses:
            await _prepare(peer)
    except Exception as error:  # noqa: BLE001  (whatever a library says is the reason to report)
        _say({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        return
    _say({"ready": True})
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        call = getattr(peer, asked["action"])
        run = _with_tasks if inspect.iscoroutinefunction(call) else _with_threads
        cpu = time.process_time()
        # Other ways of reading read the same threads.
        waits = await run(call, asked["action"].partition("_")[0], asked["callers"], asked["seconds"])
        cuts = statistics.quantiles(waits, n=100)
        _say(
            {
                "calls": len(waits),
                "p50_ms": cuts[49],
                "p99_ms": cuts[98],
                "client_cpu_us": (time.process_time() - cpu) / len(waits) * 1e6,
            }
        )


def _say(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


async def _prepare(peer: Any) -> None:
    """Threads with a past, and a proof that the library gives back what it was given."""
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str) -> None:
        async with at_once:
            for _ in range(PAST // 2):
                await _called(peer.append, name)

    await asyncio.gather(*(one(thread_name("read", number)) for number in range(THREADS)))
    for number in range(THREADS):
        words.check_exchanges(await _called(peer.read, thread_name("read", number)))


async def _called(call: Callable[[str], Any], name: str) -> Any:
    answer = call(name)
    return await answer if inspect.isawaitable(answer) else answer


async def _with_tasks(call: Callable[[str], Awaitable[Any]], action: str, callers: int, seconds: float) -> list[float]:
    waits: list[float] = []
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        while (began := time.perf_counter()) < end:
            await call(thread_name(action, number))
            waits.append((time.perf_counter() - began) * 1000)
            number += callers

    await asyncio.gather(*map(one, range(callers)))
    return waits


async def _with_threads(call: Callable[[str], Any], action: str, callers: int, seconds: float) -> list[float]:
    waits: list[float] = []
    begin = threading.Barrier(callers)

    def one(number: int) -> None:
        begin.wait()
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            call(thread_name(action, number))
            waits.append((time.perf_counter() - began) * 1000)
            number += callers

    with ThreadPoolExecutor(callers) as pool:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(pool, one, number) for number in range(callers)))
    return waits
