"""The history: what it is of, its changes in order, who follows it; the audit as a chain."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alembic import op
from sqlalchemy import text

from twofold_chassis.migrations import execute_file

revision = "0002"
down_revision = "0001"

_ENTRIES = """
SELECT workspace_id, revision, ordinal, actor, action, resource_kind, resource_id, before_json, after_json, request_id,
    (extract(epoch FROM created_at) * 1000000)::bigint AS at_us
FROM registry.audit_entries WHERE (workspace_id, revision, ordinal) > (:workspace_id, :revision, :ordinal)
ORDER BY workspace_id, revision, ordinal LIMIT 1000
"""
_CHAIN = """
UPDATE registry.audit_entries SET seq = :seq, prev_hash = :prev_hash, hash = :hash
WHERE workspace_id = :workspace_id AND revision = :revision AND ordinal = :ordinal
"""


def upgrade() -> None:
    here = Path(__file__)
    execute_file(here.with_name("0002_history_a.sql"))
    _chain_what_is_there()
    execute_file(here.with_name("0002_history_b.sql"))


def _chain_what_is_there() -> None:
    """As twofold_registry.audit does it, frozen: what this migration did must not change with the code."""
    connection = op.get_bind()
    place: dict[str, Any] = {"workspace_id": "", "revision": -1, "ordinal": -1}
    seq, last = 0, b""
    while rows := connection.execute(text(_ENTRIES), place).all():
        for row in rows:
            if row.workspace_id != place["workspace_id"]:
                seq, last = 0, bytes(32)
            seq += 1
            values: Sequence[Any] = (
                row.workspace_id, seq, row.revision, row.ordinal, row.actor, row.action, row.resource_kind, row.resource_id,
                row.before_json, row.after_json, row.request_id, row.at_us,
            )  # fmt: skip
            new = _link(last, values)
            place = {"workspace_id": row.workspace_id, "revision": row.revision, "ordinal": row.ordinal}
            connection.execute(text(_CHAIN), {**place, "seq": seq, "prev_hash": last, "hash": new})
            last = new


def _link(last: bytes, values: Sequence[Any]) -> bytes:
    digest = hashlib.sha256(last)
    for value in values:
        told = value.to_bytes(8, "big", signed=True) if isinstance(value, int) else value.encode()
        digest.update(len(told).to_bytes(8, "big"))
        digest.update(told)
    return digest.digest()
