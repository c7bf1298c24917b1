"""What is done to Redis: faults that really happen, drawn from a seed."""

import asyncio
import random
from collections import Counter

import redis.asyncio
from redis.exceptions import RedisError

from twofold_cli.embedded import EmbeddedRedis

KINDS = ("kill", "flush", "pause", "evict")
_PAUSES_S = (0.02, 0.4)
_FAULTS_S = (0.1, 1.2)


async def trouble(server: EmbeddedRedis, chance: random.Random, seconds: float, counts: Counter[str]) -> None:
    """One fault after the other for about `seconds`; at the end the server is up."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        await asyncio.sleep(chance.uniform(*_PAUSES_S))
        kind = chance.choice(KINDS)
        counts[kind] += 1
        match kind:
            case "kill":
                await server.kill()
                await asyncio.sleep(chance.uniform(*_FAULTS_S))
                await server.start()
            case "pause":
                server.pause()
                await asyncio.sleep(chance.uniform(*_FAULTS_S))
                server.resume()
            case "flush":
                await _command(server, "FLUSHALL")
            case "evict":
                await _evict(server, chance)


async def _evict(server: EmbeddedRedis, chance: random.Random) -> None:
    """Takes one of the two keys of some windows away, as an eviction or an expiry does."""
    keys = await _command(server, "KEYS", "thread:*")
    for key in chance.sample(keys, min(3, len(keys))) if isinstance(keys, list) else ():
        await _command(server, "DEL", key)


async def _command(server: EmbeddedRedis, *command: str | bytes) -> object:
    client = redis.asyncio.Redis(host=server.host, port=server.port, password=server.password, socket_timeout=2)
    async with client:
        try:
            reply: object = await client.execute_command(*command)  # type: ignore[no-untyped-call]
            return reply
        except RedisError:
            return None  # it may be down just now: then there is nothing to take away
