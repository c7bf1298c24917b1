"""The textbook memory behind gRPC: what most systems of this kind do, written as they write it, on the same servers.

python -m benchmarks.textbook        prints its port and that of its metrics, serves until SIGTERM
                                     TEXTBOOK_POSTGRES and TEXTBOOK_REDIS hold the URLs

Redis answers; Postgres gets a copy from a task that nobody waits for. Messages are JSON in a list, each command is awaited
by itself, the conversation is looked up and made if it is not there, each message is committed by itself. Nothing is made
slower than need be: hiredis, prepared statements, pools that are warm, one index, no log. What it gets wrong (the tasks that
are lost, the history that is invisible after an expiry, doubled turns …) costs no time, and is left in.

It takes and gives the messages of Twofold's contract, so that both have the same bytes to read and to write.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import grpc
import prometheus_client
import redis.asyncio
from prometheus_client import CollectorRegistry, Counter

from twofold.memory.v1 import conversation_pb2 as pb
from twofold.memory.v1 import message_pb2

SERVICE = "twofold.benchmarks.Textbook"
_MESSAGES_MAX = 100
_TTL_S = 86_400
_TABLES = """
CREATE TABLE IF NOT EXISTS conversations (
    id bigserial PRIMARY KEY,
    thread_id text NOT NULL UNIQUE,
    user_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS messages (
    id bigserial PRIMARY KEY,
    conversation_id bigint NOT NULL REFERENCES conversations (id),
    role text NOT NULL,
    content text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS messages_of_a_conversation ON messages (conversation_id, created_at);
"""


class Textbook:
    """The service."""

    def __init__(self, pool: "asyncpg.Pool[Any]", client: "redis.asyncio.Redis") -> None:
        self._pool = pool
        self._redis = client
        self._tasks: set[asyncio.Task[None]] = set()

    async def append(self, request: pb.AppendTurnRequest) -> pb.AppendTurnResponse:
        """Answers when Redis has the exchange; Postgres has it later, or never."""
        key = _key(request.thread_id)
        for message in request.messages:
            await self._redis.rpush(key, _json(message))
        await self._redis.ltrim(key, -_MESSAGES_MAX, -1)
        await self._redis.expire(key, _TTL_S)
        task = asyncio.create_task(self._save(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return pb.AppendTurnResponse(turn_id=request.request_id)

    async def window(self, request: pb.ReadWindowRequest) -> pb.ReadWindowResponse:
        """From Redis; from Postgres where the list is empty, and into the list again."""
        key = _key(request.thread_id)
        found: Sequence[bytes | str] = await self._redis.lrange(key, -request.message_count_max, -1)
        if not found:
            found = await self._hydrated(request.thread_id, key)
        return pb.ReadWindowResponse(messages=[_message(json.loads(text)) for text in found[-request.message_count_max :]])

    async def settled(self, _: bytes) -> bytes:
        """Returns when every copy has been written."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        return b""

    async def _save(self, request: pb.AppendTurnRequest) -> None:
        async with self._pool.acquire() as connection:
            number = await connection.fetchval("SELECT id FROM conversations WHERE thread_id = $1", request.thread_id)
            if number is None:
                number = await connection.fetchval(
                    "INSERT INTO conversations (thread_id, user_id) VALUES ($1, $2) RETURNING id",
                    request.thread_id,
                    request.user_id,
                )
            for message in request.messages:
                await connection.execute(
                    "INSERT INTO messages (conversation_id, role, content) VALUES ($1, $2, $3)",
                    number,
                    message_pb2.Role.Name(message.role),
                    message.content,
                )
            await connection.execute("UPDATE conversations SET updated_at = now() WHERE id = $1", number)

    async def _hydrated(self, thread_id: str, key: str) -> list[str]:
        rows = await self._pool.fetch(
            "SELECT m.role, m.content, m.created_at FROM messages m JOIN conversations c ON c.id = m.conversation_id"
            " WHERE c.thread_id = $1 ORDER BY m.created_at DESC LIMIT $2",
            thread_id,
            _MESSAGES_MAX,
        )
        found = [
            json.dumps({"role": row["role"], "content": row["content"], "timestamp": row["created_at"].timestamp()})
            for row in reversed(rows)
        ]
        if found:
            await self._redis.rpush(key, *found)
            await self._redis.expire(key, _TTL_S)
        return found


def _key(thread_id: str) -> str:
    return f"textbook:thread:{thread_id}:messages"


def _json(message: message_pb2.Message) -> str:
    return json.dumps({"role": message_pb2.Role.Name(message.role), "content": message.content, "timestamp": time.time()})


def _message(stored: dict[str, Any]) -> message_pb2.Message:
    message = message_pb2.Message(role=message_pb2.Role.Value(stored["role"]), content=stored["content"])
    message.create_time.FromNanoseconds(int(stored["timestamp"] * 1e9))
    return message


def _counted(
    name: str, behaviour: Callable[[Any], Awaitable[Any]], handled: Counter
) -> Callable[[Any, object], Awaitable[Any]]:
    """The behaviour, counted as Twofold counts: a load generator does not see what failed."""
    well, badly = handled.labels(SERVICE, name, "OK"), handled.labels(SERVICE, name, "Unknown")

    async def serve(request: Any, _: object) -> Any:
        try:
            answer = await behaviour(request)
        except Exception:
            badly.inc()
            raise
        well.inc()
        return answer

    return serve


def _handlers(textbook: Textbook, metrics: CollectorRegistry) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
    handled = Counter("grpc_server_handled", "Calls ended.", ("grpc_service", "grpc_method", "grpc_code"), registry=metrics)
    return {
        "AppendTurn": grpc.unary_unary_rpc_method_handler(
            _counted("AppendTurn", textbook.append, handled),
            request_deserializer=pb.AppendTurnRequest.FromString,
            response_serializer=pb.AppendTurnResponse.SerializeToString,
        ),
        "ReadWindow": grpc.unary_unary_rpc_method_handler(
            _counted("ReadWindow", textbook.window, handled),
            request_deserializer=pb.ReadWindowRequest.FromString,
            response_serializer=pb.ReadWindowResponse.SerializeToString,
        ),
        "Settled": grpc.unary_unary_rpc_method_handler(_counted("Settled", textbook.settled, handled)),
    }


async def serve(postgres: str, redis_url: str) -> None:
    """Serves on free ports of loopback."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    metrics = CollectorRegistry()
    metrics_server, _ = prometheus_client.start_http_server(0, "127.0.0.1", registry=metrics)
    async with (
        asyncpg.create_pool(postgres, min_size=10, max_size=10) as pool,
        redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client,
    ):
        await pool.execute(_TABLES)
        textbook = Textbook(pool, client)
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _handlers(textbook, metrics)),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, metrics_server.server_port, flush=True)
        await stop.wait()
        await server.stop(1)
        await textbook.settled(b"")
    metrics_server.shutdown()


if __name__ == "__main__":
    asyncio.run(serve(os.environ["TEXTBOOK_POSTGRES"], os.environ["TEXTBOOK_REDIS"]))
