"""langchain-redis: RedisChatMessageHistory. It needs a Redis with the search module."""

from benchmarks.peers import worker
from benchmarks.words import ANSWERED, ASKED, WINDOW


class _Peer:
    def __init__(self, redis_url: str) -> None:
        from langchain_redis import RedisChatMessageHistory  # type: ignore[import-not-found]

        self._histories = {
            name: RedisChatMessageHistory(name, redis_url=redis_url, key_prefix="peer:langchain-redis:")
            for action in ("append", "read")
            for name in (worker.thread_name(action, number) for number in range(worker.THREADS))
        }

    def append(self, name: str) -> None:
        from langchain_core.messages import AIMessage, HumanMessage  # type: ignore[import-not-found]

        self._histories[name].add_messages([HumanMessage(ASKED), AIMessage(ANSWERED)])

    def read(self, name: str) -> list[str]:
        return [message.content for message in self._histories[name].messages[-WINDOW:]]


async def opened(_: str, redis_url: str) -> _Peer:
    return _Peer(redis_url)


if __name__ == "__main__":
    worker.serve(opened)
