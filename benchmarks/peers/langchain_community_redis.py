"""langchain-community: RedisChatMessageHistory. It reads the whole list, and the newest are taken from that."""

from benchmarks.peers import worker
from benchmarks.words import ANSWERED, ASKED, WINDOW


class _Peer:
    def __init__(self, redis_url: str) -> None:
        from langchain_community.chat_message_histories import RedisChatMessageHistory  # type: ignore[import-not-found]

        self._histories = {
            name: RedisChatMessageHistory(name, url=redis_url, key_prefix="peer:langchain:", ttl=86_400)
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
