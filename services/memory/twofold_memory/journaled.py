"""Turns as they wait in the journal, and as dead letters: for people to read, too."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from twofold_memory.threads import Copy, NewMessage, NewTurn, ThreadKey, Usage


class EntryKey(NamedTuple):
    """What tells entries apart: under one turn id there may lie two payloads, one of which loses."""

    turn_id: str
    payload_hash: bytes


@dataclass(frozen=True, slots=True)
class Journaled:
    """A turn that waits for Postgres, and the turns that must be there before it.

    `worker` took it in, at `since_ms` by that worker's clock: told to people, never decided by.
    """

    turn: NewTurn
    prevs: frozenset[str]
    worker: str
    since_ms: int

    @property
    def key(self) -> EntryKey:
        """What tells it apart."""
        return EntryKey(self.turn.turn_id, self.turn.payload_hash)


class Looked(NamedTuple):
    """What a look at L1 showed: the copy, if there is one, what waits in the journal, and whether L1 answered at all."""

    copy: Copy | None
    waiting: Sequence[Journaled]
    answered: bool


def payload(turn: NewTurn) -> bytes:
    """A turn written down as JSON; what is not text stands in it as base64."""
    usage = [turn.usage.input_tokens, turn.usage.output_tokens] if turn.usage else None
    messages = [
        [message.role, message.content, base64.b64encode(message.rest).decode(), message.token_count, message.status]
        for message in turn.messages
    ]
    content = {"user": turn.user_id, "usage": usage, "status": turn.status, "bytes": turn.bytes, "messages": messages}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def turn_of(key: ThreadKey, turn_id: str, payload_hash: bytes, written: bytes) -> NewTurn:
    """What `payload` wrote down. Raises ValueError if it is something else."""
    try:
        content: dict[str, Any] = json.loads(written)
        return NewTurn(
            key=key,
            user_id=content["user"],
            turn_id=turn_id,
            payload_hash=payload_hash,
            messages=[
                NewMessage(role, text, base64.b64decode(rest), tokens, status)
                for role, text, rest, tokens, status in content["messages"]
            ],
            bytes=content["bytes"],
            usage=Usage(*content["usage"]) if content["usage"] else None,
            status=content["status"],
        )
    except (LookupError, TypeError) as error:
        raise ValueError(f"no turn: {error}") from None


def entry(turn_id: str, value: bytes, key: ThreadKey) -> Journaled:
    """What journal.lua wrote. Raises ValueError if it is something else."""
    payload_hash, worker, since, prevs, written = value.split(b"\n", 4)
    turn = turn_of(key, turn_id, bytes.fromhex(payload_hash.decode()), written)
    return Journaled(turn, ids(prevs), worker.decode(), int(since))


def ids(joined: bytes) -> frozenset[str]:
    """Turn ids that journal.lua joined."""
    return frozenset(part.decode() for part in joined.split(b"\t") if part)
