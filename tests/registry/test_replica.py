"""Reports from a real standby: only what it has surely replayed, and whatever becomes of it, an answer from the primary."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
import structlog.testing
from prometheus_client import CollectorRegistry

from tests.databases import settings_of_database
from tests.registry.scrapes import scraped
from tests.registry.stubs import Registry, refused, settings_of
from tests.registry.test_tenancy import RPCS, VARYING, answer, requests
from tests.standby import EmbeddedStandby
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import user_pb2
from twofold_chassis import postgres
from twofold_chassis.breaker import Breaker
from twofold_chassis.pools import PoolMetrics
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_registry.app import registry
from twofold_registry.revisions import Revision, revision_of
from twofold_registry.store import replica
from twofold_registry.store.reads import Reads

OUTCOMES = ("replica", "behind", "busy", "away")
WORKSPACE = "acme"
# Longer than any test waits: who waits for a statement on a replica that does not answer fails.
COMMAND_S = 120.0


@dataclass(frozen=True)
class Pair:
    """A registry over a primary and its standby."""

    standby: EmbeddedStandby
    channel: grpc.aio.Channel
    metrics_port: int

    @property
    def api(self) -> Registry:
        return Registry(self.channel)

    async def counts(self) -> list[float]:
        """How many reads came to what."""
        name = "twofold_registry_replica_reads_total"
        samples = await scraped(self.metrics_port)
        return [samples[name, (("outcome", outcome),)] for outcome in OUTCOMES]

    async def changed(self, before: list[float]) -> dict[str, float]:
        """What has been counted since."""
        after = await self.counts()
        return {name: new - old for name, old, new in zip(OUTCOMES, before, after, strict=True) if new != old}

    async def users(self, token: bytes = b"") -> set[str]:
        request = user_pb2.ListUsersRequest(workspace_id=WORKSPACE, page_size=500, min_revision_token=token)
        return {user.user_id for user in (await self.api.users.ListUsers(request, timeout=20)).users}

    async def add_user(self) -> tuple[str, bytes]:
        """A new user, and the revision of that change."""
        user_id = f"user-{uuid.uuid4().hex[:8]}"
        draft = user_pb2.User(workspace_id=WORKSPACE, user_id=user_id, email=f"{user_id}@acme.test")
        return user_id, (await self.api.users.CreateUser(user_pb2.CreateUserRequest(user=draft))).revision_token

    async def until(self, outcome: str, token: bytes) -> None:
        """Returns once a list has come to that."""
        async with asyncio.timeout(30):
            while True:
                before = await self.counts()
                await self.users(token)
                if outcome in await self.changed(before):
                    return
                await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
async def primary(servers_folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(servers_folder / f"primary-{uuid.uuid4().hex[:8]}")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="module")
async def pair(servers_folder: Path, primary: EmbeddedPostgres) -> AsyncIterator[Pair]:
    standby = EmbeddedStandby(servers_folder / f"standby-{uuid.uuid4().hex[:8]}", primary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replica, "_LOOK_S", 10.0)  # this machine is busy
        patch.setattr(replica, "_REST_S", 0.05)
        try:
            await standby.start()
            database = settings_of_database(primary, replica_url=standby.app_url, command_timeout_s=COMMAND_S)
            async with (
                registry(settings_of(database, metrics_port=0)) as running,
                grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
            ):
                assert running.metrics_port is not None
                made = Pair(standby, channel, running.metrics_port)
                await made.api.make_workspace(WORKSPACE)
                await made.api.make_user(WORKSPACE, "ann")
                await made.api.make_agent(WORKSPACE, "helper")
                await made.api.grant(WORKSPACE, "ann", "helper")
                yield made
        finally:
            await standby.stop()


@pytest.fixture
async def token(pair: Pair) -> bytes:
    """The newest revision, which the standby has replayed."""
    _, token = await pair.add_user()
    await pair.standby.replayed()
    return token


TELLING = sorted(name for name, rpc in RPCS.items() if "min_revision_token" in rpc.request.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("name", sorted(set(TELLING) & requests("w", "u", "a").keys()))
async def test_lists_and_reports_come_from_the_replica_and_nothing_else_does(pair: Pair, token: bytes, name: str) -> None:
    request: Any = requests(WORKSPACE, "ann", "helper")[name]
    at_primary = await answer(pair.channel, name, request, *VARYING)
    before = await pair.counts()
    request.min_revision_token = token
    answered = await answer(pair.channel, name, request, *VARYING)
    if name.startswith("List"):
        assert answered == at_primary
        assert await pair.changed(before) == {"replica": 1}
    else:
        assert answered.startswith("StatusCode") == at_primary.startswith("StatusCode")
        assert await pair.changed(before) == {}


async def test_without_a_token_the_primary_is_asked(pair: Pair) -> None:
    before = await pair.counts()
    user_id, _ = await pair.add_user()
    assert user_id in await pair.users()
    assert await pair.changed(before) == {}


async def test_what_the_replica_has_not_replayed_the_primary_answers(pair: Pair, token: bytes) -> None:
    admin = await asyncpg.connect(pair.standby.superuser_url)
    await admin.execute("SELECT pg_wal_replay_pause()")
    try:
        user_id, newer = await pair.add_user()
        before = await pair.counts()
        assert user_id in await pair.users(newer)
        assert user_id not in await pair.users(token), "who asks for less may get less"
        assert await pair.changed(before) == {"behind": 1, "replica": 1}
    finally:
        await admin.execute("SELECT pg_wal_replay_resume()")
        await admin.close()
    await pair.standby.replayed()
    assert user_id in await pair.users(newer)
    assert await pair.changed(before) == {"behind": 1, "replica": 2}


async def test_a_token_of_another_history_is_refused_by_the_primary(pair: Pair, token: bytes) -> None:
    revision = revision_of(token, "token")
    assert revision is not None
    for other, reason, code in (
        (Revision(revision.epoch - 1, revision.number), Reason.REASON_HISTORY_CHANGED, grpc.StatusCode.ABORTED),
        (Revision(revision.epoch, 10**9), Reason.REASON_REVISION_NOT_REACHED, grpc.StatusCode.UNAVAILABLE),
    ):
        before = await pair.counts()
        with refused(code, reason):
            await pair.users(other.token())
        assert await pair.changed(before) == {"behind": 1}


async def _killed(standby: EmbeddedStandby) -> None:
    await standby.kill()


async def _paused(standby: EmbeddedStandby) -> None:
    standby.pause()


@pytest.mark.parametrize("gone", [_killed, _paused])
async def test_without_the_replica_the_primary_answers_and_is_told_once(
    pair: Pair, token: bytes, gone: Callable[[EmbeddedStandby], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.until("replica", token)
    await gone(pair.standby)
    monkeypatch.setattr(replica, "_LOOK_S", 0.25)
    try:
        with structlog.testing.capture_logs() as logged:
            before = await pair.counts()
            for _ in range(5):
                assert "ann" in await pair.users(token)
            assert await pair.changed(before) == {"away": 5}
        told = [line["event"] for line in logged if line["log_level"] == "warning"]
        assert told == ["the replica is away, the primary is asked"]
    finally:
        if pair.standby.running:
            pair.standby.resume()
        else:
            await pair.standby.start()
    monkeypatch.setattr(replica, "_LOOK_S", 10.0)
    await pair.until("replica", token)


async def test_while_it_rests_a_replica_that_did_not_answer_is_not_asked(
    pair: Pair, token: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.until("replica", token)
    resting = Breaker(failures_max=1, rest_s=1e9)
    resting.failed()
    rests = resting.admits
    before = await pair.counts()
    monkeypatch.setattr(Breaker, "admits", lambda _: rests())
    assert "ann" in await pair.users(token)
    assert await pair.changed(before) == {"away": 1}


async def test_a_replica_that_is_a_migration_behind_is_behind(pair: Pair, primary: EmbeddedPostgres, token: bytes) -> None:
    """It has what was asked for, but not yet the columns that this release reads."""
    database = settings_of_database(primary, replica_url=pair.standby.app_url)
    pools = PoolMetrics(CollectorRegistry())
    async with contextlib.AsyncExitStack() as stack:
        behind = await replica.open_replica(database, pools, CollectorRegistry())
        assert behind is not None
        stack.push_async_callback(behind.close)
        pool = await postgres.open_pool(database, name="test")
        stack.push_async_callback(postgres.close_pool, pool)

        async def ask(connection: postgres.Connection) -> str:
            if await connection.fetchval("SELECT pg_is_in_recovery()"):
                await connection.fetch("SELECT what_is_new FROM registry.users")
            return "from the primary"

        least = revision_of(token, "token")
        assert await Reads(pool, behind).report(WORKSPACE, ask, least) == "from the primary"


async def test_a_start_does_not_need_the_replica(pair: Pair, primary: EmbeddedPostgres) -> None:
    nowhere = "postgresql://twofold_app:word@127.0.0.1:1/twofold"
    database = settings_of_database(primary, replica_url=nowhere, migrate=False)
    async with (
        registry(settings_of(database)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        _, token = await pair.add_user()
        request = user_pb2.ListUsersRequest(workspace_id=WORKSPACE, min_revision_token=token)
        assert (await Registry(channel).users.ListUsers(request)).users


async def test_what_was_promoted_is_no_replica_any_more(pair: Pair, token: bytes) -> None:
    """It may have a history of its own by now. The last test: nothing brings the standby back."""
    admin = await asyncpg.connect(pair.standby.superuser_url)
    assert await admin.fetchval("SELECT pg_promote()")
    await admin.close()
    before = await pair.counts()
    assert "ann" in await pair.users(token)
    assert await pair.changed(before) == {"away": 1}
