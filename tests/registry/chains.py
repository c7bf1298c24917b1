"""Chains of the audit in tests: walked by the service, and rewritten by somebody who may do everything."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from tests.registry.stubs import Connection, Registry
from twofold.registry.v1 import audit_pb2 as pb


async def exported(api: Registry, workspace_id: str, after_seq: int = 0) -> list[pb.AuditEntry]:
    """All entries behind a place, oldest first."""
    request = pb.ExportAuditRequest(workspace_id=workspace_id, after_seq=after_seq)
    return [entry async for answer in api.audit.ExportAudit(request) for entry in answer.entries]


async def verified(api: Registry, workspace_id: str, **values: Any) -> pb.AuditResult:
    """How the service finds the chain."""
    answers = [a async for a in api.audit.VerifyAudit(pb.VerifyAuditRequest(workspace_id=workspace_id, **values))]
    assert [answer.WhichOneof("answer") for answer in answers] == ["progress"] * (len(answers) - 1) + ["result"]
    return answers[-1].result


def told(result: pb.AuditResult) -> tuple[str, int] | None:
    """Kind and place of the fault; None if all is well."""
    if not result.HasField("fault"):
        return None
    return pb.AuditFaultKind.Name(result.fault.kind).removeprefix("AUDIT_FAULT_KIND_"), result.fault.seq


@asynccontextmanager
async def tampering(superuser_url: str) -> AsyncIterator[Connection]:
    """Postgres without its own guards: what is done in the block is undone at its end."""
    connection = await asyncpg.connect(superuser_url)
    try:
        await connection.execute("SET session_replication_role = replica")
        yield connection
    finally:
        await connection.close()
