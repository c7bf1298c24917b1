"""openai-agents: RedisSession, one client for all sessions."""

from benchmarks.peers import worker
from benchmarks.words import ANSWERED, ASKED, WINDOW


class _Peer:
    def __init__(self, redis_url: str) -> None:
        import redis.asyncio
        from agents.extensions.memory import RedisSession  # type: ignore[import-not-found]

        client = redis.asyncio.Redis.from_url(redis_url)
        self._sessions = {
            name: RedisSession(name, redis_client=client, key_prefix="peer:openai")
            for action in ("append", "read")
            for name in (worker.thread_name(action, number) for number in range(worker.THREADS))
        }

    async def append(self, name: str) -> None:
        await self._sessions[name].add_items(
            [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
        )

    async def read(self, name: str) -> list[str]:
        return [item["content"] for item in await self._sessions[name].get_items(limit=WINDOW)]


async def opened(_: str, redis_url: str) -> _Peer:
    return _Peer(redis_url)


if __name__ == "__main__":
    worker.serve(opened)
