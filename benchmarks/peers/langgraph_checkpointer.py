"""LangGraph: AsyncPostgresSaver, with a pool as large as Twofold's.

The least that keeps an exchange through it: load the newest checkpoint, add two messages to its channel, put the next one.
The graph engine, which would write more of them for each step, is left out.
"""

from typing import Any

from benchmarks.peers import worker
from benchmarks.words import ANSWERED, ASKED, WINDOW


class _Peer:
    def __init__(self, saver: Any) -> None:
        from langchain_core.messages import AIMessage, HumanMessage  # type: ignore[import-not-found]

        self._saver = saver
        self._exchange = [HumanMessage(ASKED), AIMessage(ANSWERED)]

    async def append(self, name: str) -> None:
        from langgraph.checkpoint.base import empty_checkpoint  # type: ignore[import-not-found]
        from langgraph.checkpoint.base.id import uuid6  # type: ignore[import-not-found]

        config = {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
        found = await self._saver.aget_tuple(config)
        old = found.checkpoint if found else empty_checkpoint()
        version = self._saver.get_next_version(old["channel_versions"].get("messages"), None)
        new = old | {
            "id": str(uuid6()),
            "channel_values": {"messages": [*old["channel_values"].get("messages", []), *self._exchange]},
            "channel_versions": {"messages": version},
        }
        metadata: dict[str, Any] = {"source": "loop", "step": found.metadata["step"] + 1 if found else 0, "parents": {}}
        await self._saver.aput(found.config if found else config, new, metadata, {"messages": version})

    async def read(self, name: str) -> list[str]:
        found = await self._saver.aget_tuple({"configurable": {"thread_id": name, "checkpoint_ns": ""}})
        return [message.content for message in found.checkpoint["channel_values"]["messages"][-WINDOW:]]


async def opened(postgres: str, _: str) -> _Peer:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # type: ignore[import-not-found]
    from psycopg.rows import dict_row  # type: ignore[import-not-found]
    from psycopg_pool import AsyncConnectionPool  # type: ignore[import-not-found]

    settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    pool = AsyncConnectionPool(postgres, min_size=10, max_size=10, kwargs=settings, open=False)
    await pool.open(wait=True)
    saver = AsyncPostgresSaver(pool)
    await saver.setup()
    return _Peer(saver)


if __name__ == "__main__":
    worker.serve(opened)
