"""Calls that are made once each, from a process of their own: `python -m benchmarks.once TARGET METHOD CALLERS`.

Reads the bodies from its input, a line each in hexadecimal, and calls once it has all of them and its connections. Prints
how many seconds all calls took, and the latency of each in milliseconds. h2load can send one body only, over and over.
"""

import asyncio
import sys
import time
from collections.abc import Sequence

import grpc

_CONNECTIONS = 4
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


async def sent(target: str, method: str, bodies: Sequence[bytes], callers: int) -> tuple[float, list[float]]:
    """Starts the process; seconds in all, and milliseconds of each call. Raises RuntimeError if one was refused."""
    argv = (sys.executable, "-m", __name__, target, method, str(callers))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe)
    told, errors = await process.communicate("".join(f"{body.hex()}\n" for body in bodies).encode())
    if process.returncode != 0:
        raise RuntimeError(f"{method}: {errors.decode()[-500:]}")
    seconds, *latencies = map(float, told.split())
    return seconds, latencies


async def _send(target: str, method: str, bodies: Sequence[bytes], callers: int) -> tuple[float, list[float]]:
    channels = [grpc.aio.insecure_channel(target, options=_OPTIONS) for _ in range(_CONNECTIONS)]
    for channel in channels:
        await channel.channel_ready()
    calls: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [channel.unary_unary(method) for channel in channels]
    waiting, latencies = iter(bodies), []

    async def caller(number: int) -> None:
        call = calls[number % _CONNECTIONS]
        for body in waiting:
            began = time.perf_counter()
            await call(body)
            latencies.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*map(caller, range(callers)))
    return time.perf_counter() - began, latencies


def main() -> None:
    """Prints what it took."""
    target, method, callers = sys.argv[1:]
    bodies = [bytes.fromhex(line) for line in sys.stdin.read().split()]
    seconds, latencies = asyncio.run(_send(target, method, bodies, int(callers)))
    print(seconds, *latencies)


if __name__ == "__main__":
    main()
