"""langchain-postgres: PostgresChatMessageHistory, async, with a pool as large as Twofold's. It reads the whole history."""

import uuid

from benchmarks.peers import worker
from benchmarks.words import ANSWERED, ASKED, WINDOW

_TABLE = "chat_history"


class _Peer:
    def __init__(self, pool: object) -> None:
        self._pool = pool

    async def append(self, name: str) -> None:
        from langchain_core.messages import AIMessage, HumanMessage  # type: ignore[import-not-found]

        async with self._pool.connection() as connection:  # type: ignore[attr-defined]
            await _history(name, connection).aadd_messages([HumanMessage(ASKED), AIMessage(ANSWERED)])

    async def read(self, name: str) -> list[str]:
        async with self._pool.connection() as connection:  # type: ignore[attr-defined]
            messages = await _history(name, connection).aget_messages()
        return [message.content for message in messages[-WINDOW:]]


def _history(name: str, connection: object) -> "PostgresChatMessageHistory":  # type: ignore[name-defined]  # noqa: F821
    from langchain_postgres import PostgresChatMessageHistory  # type: ignore[import-not-found]

    return PostgresChatMessageHistory(_TABLE, str(uuid.uuid5(uuid.NAMESPACE_OID, name)), async_connection=connection)


async def opened(postgres: str, _: str) -> _Peer:
    from langchain_postgres import PostgresChatMessageHistory
    from psycopg_pool import AsyncConnectionPool  # type: ignore[import-not-found]

    pool = AsyncConnectionPool(postgres, min_size=10, max_size=10, open=False)
    await pool.open(wait=True)
    async with pool.connection() as connection:
        await PostgresChatMessageHistory.acreate_tables(connection, _TABLE)
    return _Peer(pool)


if __name__ == "__main__":
    worker.serve(opened)
