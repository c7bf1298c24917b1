"""Writes that may be repeated: the same call again, with its request id, changes nothing and gets the first answer.

Each room keeps a table `requests` in its schema (workspace_id, request_id, rpc, body_hash, answer, created_at) and writes to
it in the transaction of the change itself: there is no moment at which one of the two exists without the other. A room whose
answers may have to be erased also has the columns thread_id and user_id there: what the call was about.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from google.protobuf.message import Message

from twofold_chassis import fields
from twofold_chassis.postgres import Connection
from twofold_chassis.refusals import RequestReused

_SWEPT_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of a write. Its repeats have the same request id, rpc and body.

    `scope` is the workspace in which the request id is unique; empty for what happens in none. `thread_id` and `user_id`:
    what it is about, if its request says that.
    """

    scope: str
    rpc: str
    request_id: str | None
    body_hash: bytes
    thread_id: str | None = None
    user_id: str | None = None


def attempt(scope: str, rpc: str, request: Message, request_id: str) -> Attempt:
    """Reads what makes a call a repeat; `request_id` is the request's field of that name."""
    body = request.SerializeToString(deterministic=True)
    given = fields.optional_identifier(request_id, "request_id")
    return Attempt(scope, rpc, given, sha256(body).digest(), _named(request, "thread_id"), _named(request, "user_id"))


def _named(request: Message, field: str) -> str | None:
    """An id that the request has itself, or in the resource that it is about."""
    for message in _with_parts(request):
        if field in message.DESCRIPTOR.fields_by_name and (value := getattr(message, field)):
            return str(value)
    return None


def _with_parts(request: Message) -> Iterator[Message]:
    yield request
    for _, value in request.ListFields():
        if isinstance(value, Message):
            yield value


class Requests:
    """The table of one schema. `says_what`: it has the columns thread_id and user_id.

    Old answers are forgotten by the writes themselves; with `is_swept` by somebody else, who runs
    `statements["forget_answers"]` (where row-level security hides other tenants' from a write).
    """

    def __init__(self, schema: str, *, says_what: bool = False, is_swept: bool = False) -> None:
        texts = _STATEMENTS | _STATEMENTS_ABOUT if says_what else _STATEMENTS
        self.statements = {name: text.replace("{schema}", schema) for name, text in texts.items()}
        self._says_what = says_what
        self._is_swept = is_swept

    async def once(self, connection: Connection, attempt: Attempt, change: Callable[[], Awaitable[bytes]]) -> bytes:
        """Makes the change in the running transaction and returns its answer, or the answer of the first time.

        Repeats that come while the first is under way wait for its end. Raises RequestReused if the request id was used
        with another body or rpc.
        """
        if attempt.request_id is None:
            return await change()
        name = (attempt.scope, attempt.request_id)
        await connection.execute(self.statements["lock_request"], *name)
        row = await connection.fetchrow(self.statements["answered_request"], *name)
        if row is not None:
            if (row["rpc"], row["body_hash"]) != (attempt.rpc, attempt.body_hash):
                raise RequestReused(
                    f"the request id {attempt.request_id!r} was used for another call", request_id=attempt.request_id
                )
            earlier: bytes = row["answer"]
            return earlier
        # Before the change, which may take locks that everybody waits for.
        if not self._is_swept:
            await connection.execute(self.statements["forget_answers"], _SWEPT_AT_ONCE)
        answer = await change()
        about = (attempt.thread_id, attempt.user_id) if self._says_what else ()
        await connection.execute(self.statements["keep_answer"], *name, attempt.rpc, attempt.body_hash, answer, *about)
        return answer

    async def tells_of(self, connection: Connection, attempt: Attempt, thread_id: str) -> None:
        """Says what the answer that `once` has just kept is about, where the request did not: found by the change itself."""
        if attempt.request_id is not None:
            await connection.execute(self.statements["answer_tells_of"], attempt.scope, attempt.request_id, thread_id)


_STATEMENTS = {
    "lock_request": "SELECT pg_advisory_xact_lock(hashtextextended('{schema}:' || length($1::text) || ':' || $1 || $2, 0))",
    "answered_request": (
        "SELECT rpc, body_hash, answer FROM {schema}.requests"
        " WHERE workspace_id = $1 AND request_id = $2 AND created_at > now() - interval '24 hours'"
    ),
    "keep_answer": (
        "INSERT INTO {schema}.requests (workspace_id, request_id, rpc, body_hash, answer) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (workspace_id, request_id) DO UPDATE SET rpc = excluded.rpc, body_hash = excluded.body_hash,"
        " answer = excluded.answer, created_at = now()"  # one that has outlived its 24 hours
    ),
    "forget_answers": (
        "DELETE FROM {schema}.requests WHERE (workspace_id, request_id) IN (SELECT workspace_id, request_id"
        " FROM {schema}.requests WHERE created_at < now() - interval '25 hours' ORDER BY created_at LIMIT $1"
        " FOR UPDATE SKIP LOCKED)"
    ),
}
_STATEMENTS_ABOUT = {
    "keep_answer": (
        "INSERT INTO {schema}.requests (workspace_id, request_id, rpc, body_hash, answer, thread_id, user_id)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)"
        " ON CONFLICT (workspace_id, request_id) DO UPDATE SET rpc = excluded.rpc, body_hash = excluded.body_hash,"
        " answer = excluded.answer, created_at = now(), thread_id = excluded.thread_id, user_id = excluded.user_id"
    ),
    "answer_tells_of": "UPDATE {schema}.requests SET thread_id = $3 WHERE workspace_id = $1 AND request_id = $2",
}
