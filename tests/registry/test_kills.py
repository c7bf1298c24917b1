"""C13, C14: whatever is killed, and whenever: each change is made, told and audited once; each event counts once.

20 kills here; `KILLS=200 pytest tests/registry/test_kills.py` for more, `SEED=…` for others.
"""

import asyncio
import os
import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.databases import settings_of_database
from tests.registry.stubs import Answered, Registry
from twofold.registry.v1 import audit_pb2, permission_pb2, usage_pb2, user_pb2
from twofold_cli.embedded import ServiceProcess
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.environment import bare_environment

KILLS = int(os.environ.get("KILLS", "20"))
SEED = int(os.environ.get("SEED", "20261120"))
WRITERS = 6
CALL_S = 10.0

ONCE = """
    SELECT (SELECT revision FROM registry.registry_head) AS head,
        (SELECT array_agg(revision ORDER BY revision) FROM registry.audit_entries) AS audited,
        (SELECT array_agg(revision ORDER BY revision) FROM registry.changes) AS told,
        (SELECT array_agg(user_id ORDER BY user_id) FROM registry.users) AS users
"""


@pytest.fixture
async def process(own_postgres: EmbeddedPostgres, servers_folder: Path) -> AsyncIterator[ServiceProcess]:
    """The registry as a process of its own, over a Postgres of this test's own."""
    database = settings_of_database(own_postgres)
    urls = {"URL": database.url, "MIGRATE_URL": database.migrate_url, "SYSTEM_URL": database.system_url}
    log = servers_folder / f"registry-{uuid.uuid4().hex[:8]}.log"
    registry = ServiceProcess("registry", log, lambda: _environment(urls, registry), start_s=60.0)
    await registry.start()
    yield registry
    await registry.terminate()


def _environment(urls: dict[str, Any], registry: ServiceProcess) -> dict[str, str]:
    named = {f"DATABASE__{name}": url.get_secret_value() for name, url in urls.items()}
    ports = {"REGISTRY__PORT": str(registry.port), "REGISTRY__METRICS_PORT": str(registry.metrics_port)}
    return {**bare_environment(), **named, **ports, "DATABASE__POOL_SIZE_MAX": "5", "REGISTRY__DRAIN_S": "0"}


@dataclass
class Work:
    """Writers that insist, and what they were told."""

    api: Registry
    workspace_id: str
    chance: random.Random
    stop: bool = False
    users: list[str] = field(default_factory=list)
    events: list[usage_pb2.UsageEvent] = field(default_factory=list)
    answered: Answered = field(default_factory=Answered)

    async def change(self, writer: int) -> None:
        number = 0
        while not self.stop:
            user_id = f"u{writer}-{number:04}"
            number += 1
            user = user_pb2.User(workspace_id=self.workspace_id, user_id=user_id, email=f"{user_id}@acme.test")
            request = user_pb2.CreateUserRequest(user=user, request_id=user_id)
            first = await self.answered.insist(partial(self.api.users.CreateUser, request, timeout=CALL_S))
            self.users.append(user_id)
            if self.chance.random() < 0.2:  # again, by somebody who has not heard the answer
                again = await self.answered.insist(partial(self.api.users.CreateUser, request, timeout=CALL_S))
                assert again == first
            if self.chance.random() < 0.3:
                grant = permission_pb2.AgentGrant(workspace_id=self.workspace_id, user_id=user_id, agent_id="helper")
                asked = permission_pb2.GrantRequest(grant=grant, request_id=f"grant-{user_id}")
                await self.answered.insist(partial(self.api.permissions.Grant, asked, timeout=CALL_S))

    async def use(self, writer: int) -> None:
        number = 0
        while not self.stop:
            batch = []
            for _ in range(self.chance.randrange(1, 6)):
                batch.append(self._event(f"op-{writer}-{number:04}/0"))
                number += 1
            request = usage_pb2.RecordUsageRequest(workspace_id=self.workspace_id, events=batch)
            self.events.extend(batch)
            for _ in range(self.chance.randrange(1, 6)):
                await self.answered.insist(partial(self.api.usage.RecordUsage, request, timeout=CALL_S))

    def _event(self, event_id: str) -> usage_pb2.UsageEvent:
        return usage_pb2.UsageEvent(
            event_id=event_id,
            user_id="ann",
            agent_id="helper",
            event_time=Timestamp(seconds=1_790_000_000 + self.chance.randrange(100)),
            messages=1,
            input_tokens=self.chance.randrange(1000),
            output_tokens=self.chance.randrange(1000),
        )


async def kill(process: ServiceProcess, postgres: EmbeddedPostgres, chance: random.Random) -> None:
    if chance.random() < 0.5:
        await process.kill()
        await process.start()
    else:
        await postgres.kill()
        await postgres.start()


@pytest.mark.timeout(60 + 10 * KILLS)
async def test_c13_c14_after_any_kill_every_change_and_every_event_has_happened_once(
    process: ServiceProcess, own_postgres: EmbeddedPostgres
) -> None:
    chance = random.Random(SEED)
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    async with grpc.aio.insecure_channel(process.target, options=options) as channel:
        api = Registry(channel)
        workspace_id = (await api.make_workspace("")).workspace_id
        await api.make_user(workspace_id, "ann")
        await api.make_agent(workspace_id, "helper")
        work = Work(api, workspace_id, chance)
        tasks = [asyncio.create_task(work.change(writer)) for writer in range(WRITERS)]
        tasks += [asyncio.create_task(work.use(writer)) for writer in range(WRITERS)]
        for _ in range(KILLS):
            await work.answered.progress(chance.randrange(1, 40))
            await kill(process, own_postgres, chance)
        await work.answered.progress(20)
        work.stop = True
        await asyncio.gather(*tasks)
        await _check(work, own_postgres)


async def _check(work: Work, postgres: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(postgres.owner_url)
    row = await connection.fetchrow(ONCE)
    await connection.close()
    assert row is not None
    assert row["users"] == sorted([*work.users, "ann"])
    assert row["audited"] == row["told"] == list(range(1, row["head"] + 1))
    verified = work.api.audit.VerifyAudit(audit_pb2.VerifyAuditRequest(workspace_id=work.workspace_id))
    (result,) = [told.result async for told in verified if told.HasField("result")]
    assert not result.HasField("fault")
    assert result.entry_count == row["head"]
    span = usage_pb2.GetUsageRequest(
        workspace_id=work.workspace_id, start_time=Timestamp(seconds=1), end_time=Timestamp(seconds=4_000_000_000)
    )
    usage = await work.api.usage.GetUsage(span)
    assert len({event.event_id for event in work.events}) == len(work.events)
    assert (usage.events, usage.messages, usage.input_tokens, usage.output_tokens) == (
        len(work.events),
        sum(event.messages for event in work.events),
        sum(event.input_tokens for event in work.events),
        sum(event.output_tokens for event in work.events),
    )
