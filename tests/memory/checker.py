"""M7 and M9 as a check: what L1 holds of a thread, held against what Postgres holds."""

from typing import Any

import asyncpg
import redis.asyncio

from twofold.memory.v1.conversation_pb2 import ReadWindowResponse
from twofold_memory import keys
from twofold_memory.threads import ThreadKey


async def check_window(raw: redis.asyncio.Redis, sql: "asyncpg.Pool[Any]", key: ThreadKey) -> int:
    """Fails unless L1 is absent or a contiguous run of the thread in its epoch, under a TTL; returns its length."""
    names = (keys.thread_messages(key), keys.thread_head(key))
    async with raw.pipeline(transaction=True) as pipeline:
        pipeline.lrange(names[0], 0, -1)
        pipeline.hgetall(names[1])
        pipeline.pttl(names[0])
        pipeline.pttl(names[1])
        elements, head, *ttls = await pipeline.execute()
    for ttl in ttls:
        assert ttl == -2 or 0 < ttl <= 24 * 3600 * 1000, "M9: a key without a time to live"
    if not head or int(head[b"next"]) == 0:
        return 0
    first, following = int(head[b"first"]), int(head[b"next"])
    if len(elements) != following - first:
        return 0  # one of the keys was evicted: nobody takes it for a window
    rows = await sql.fetch(
        "SELECT m.seq, m.turn_id, m.turn_index, m.role, m.status, m.revision, m.content"
        " FROM memory.conversations c, memory.segments(c) s, memory.messages m"
        " WHERE c.workspace_id = $1 AND c.thread_id = $2 AND m.workspace_id = $1 AND m.thread_id = s.thread_id"
        " AND m.seq > s.after_seq AND m.seq <= s.last_seq AND m.seq >= $3 AND m.seq < $4 ORDER BY m.seq",
        *key,
        first,
        following,
    )
    epoch = await sql.fetchval("SELECT epoch FROM memory.conversations WHERE workspace_id = $1 AND thread_id = $2", *key)
    if int(head[b"epoch"]) != epoch:
        return 0  # of another epoch: nobody takes it for a window either
    held = list(ReadWindowResponse.FromString(b"".join(element[1:] for element in elements)).messages)
    assert [(m.seq, m.turn_id, m.turn_index, m.role, m.status, m.revision) for m in held] == [tuple(row)[:6] for row in rows]
    assert [m.content if m.HasField("content") else None for m in held] == [row["content"] for row in rows]
    assert sum(map(len, elements)) == int(head[b"bytes"])
    return len(held)
