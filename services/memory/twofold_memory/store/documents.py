"""Documents in Postgres."""

import json
from collections.abc import Sequence
from itertools import groupby

import asyncpg

from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_chassis.requests import Attempt, Requests
from twofold_memory.documents import DOCUMENTS_MAX, Answer, Asked, Document, TooManyDocuments
from twofold_memory.store import records
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.threads import ThreadKey, may_see, unknown


class PostgresDocuments:
    """The truth about which documents are linked."""

    def __init__(self, pool: Pool, requests: Requests) -> None:
        self._pool = pool
        self._requests = requests

    async def link(self, attempt: Attempt, key: ThreadKey, user_id: str | None, document: Document, answer: Answer) -> bytes:
        """Links a document, or replaces what is known of it. Raises ConversationUnknown, TooManyDocuments, RequestReused."""

        async def change() -> bytes:
            # Locked, not only held: of two who link the hundredth one comes after the other.
            row = await connection.fetchrow(STATEMENTS["lock_thread"], *key)
            if row is None or row["deleted"] or not may_see(row["owner"], user_id):
                raise unknown(key)
            if await connection.fetchval(STATEMENTS["count_documents"], *key, document.document_id) >= DOCUMENTS_MAX:
                raise TooManyDocuments(f"{DOCUMENTS_MAX} documents are linked to this conversation already")
            linked = await connection.fetchrow(
                STATEMENTS["link_document"],
                *key,
                document.document_id,
                document.title,
                document.url,
                document.media_type,
                json.dumps(dict(document.metadata)),
            )
            assert linked is not None
            return answer(_document(linked))

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def unlink(self, attempt: Attempt, key: ThreadKey, user_id: str | None, document_id: str, answer: bytes) -> bytes:
        """Removes a link; one that is not there counts as removed. Raises ConversationUnknown, RequestReused."""

        async def change() -> bytes:
            await records.hold(connection, key, user_id)
            await connection.execute(STATEMENTS["unlink_document"], *key, document_id)
            return answer

        async with postgres.transaction(self._pool) as connection:
            return await self._requests.once(connection, attempt, change)

    async def page(self, key: ThreadKey, user_id: str | None, after: str, count: int) -> list[Document]:
        """Documents by their ids, from behind one on. Raises ConversationUnknown."""
        async with postgres.connection(self._pool) as connection:
            await records.find(connection, key, user_id)
            rows = await connection.fetch(STATEMENTS["documents_after"], *key, after, count)
        return [_document(row) for row in rows]

    async def linked(self, asked: Sequence[Asked]) -> list[list[Document]]:
        """The documents of each conversation by their ids; none of one that is not there for this user."""
        async with postgres.connection(self._pool) as connection:
            rows = await connection.fetch(
                STATEMENTS["documents_of"],
                [one.key.workspace_id for one in asked],
                [one.key.thread_id for one in asked],
                [one.user_id for one in asked],
                DOCUMENTS_MAX,
            )
        found = {place: [_document(row) for row in group] for place, group in groupby(rows, lambda row: row["place"])}
        return [found.get(place, []) for place in range(1, len(asked) + 1)]


def _document(row: asyncpg.Record) -> Document:
    return Document(
        row["document_id"],
        row["title"],
        row["url"],
        row["media_type"],
        json.loads(row["metadata"]),
        row["created_at"],
        row["updated_at"],
    )
