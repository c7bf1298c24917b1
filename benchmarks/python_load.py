"""A load generator in Python, for machines without h2load.

python -m benchmarks.python_load TARGET METHOD BODY_FILE CALLERS SECONDS LOG_FILE
"""

import asyncio
import sys
import time
from pathlib import Path

import grpc


async def generate(target: str, method: str, body: bytes, callers: int, seconds: float) -> list[float]:
    """Latencies in milliseconds of the calls that were answered OK."""
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(target) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        end = time.perf_counter() + seconds

        async def one() -> None:
            while (began := time.perf_counter()) < end:
                await call(body)
                latencies.append((time.perf_counter() - began) * 1000)

        await asyncio.gather(*(one() for _ in range(callers)))
    return latencies


def main() -> None:
    """Writes a line a call."""
    target, method, body, callers, seconds, log = sys.argv[1:]
    latencies = asyncio.run(generate(target, method, Path(body).read_bytes(), int(callers), float(seconds)))
    Path(log).write_text("\n".join(map(str, latencies)))


if __name__ == "__main__":
    main()
