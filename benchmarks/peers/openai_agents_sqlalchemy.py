"""openai-agents: SQLAlchemySession over asyncpg, one engine for all sessions, with a pool as large as Twofold's."""

from benchmarks.peers import worker
from benchmarks.words import ANSWERED, ASKED, WINDOW


class _Peer:
    def __init__(self, postgres: str) -> None:
        from agents.extensions.memory import SQLAlchemySession  # type: ignore[import-not-found]
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(
            postgres.replace("postgresql://", "postgresql+asyncpg://"), pool_size=10, max_overflow=0
        )
        self._sessions = {
            name: SQLAlchemySession(name, engine=engine, create_tables=True)
            for action in ("append", "read")
            for name in (worker.thread_name(action, number) for number in range(worker.THREADS))
        }

    async def append(self, name: str) -> None:
        await self._sessions[name].add_items(
            [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
        )

    async def read(self, name: str) -> list[str]:
        return [item["content"] for item in await self._sessions[name].get_items(limit=WINDOW)]


async def opened(postgres: str, _: str) -> _Peer:
    return _Peer(postgres)


if __name__ == "__main__":
    worker.serve(opened)
