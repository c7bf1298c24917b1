"""Waiting until no router answers from before a change."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import pytest

from tests.databases import own_database, settings_of_database
from twofold_chassis import postgres
from twofold_chassis.clocks import boot_s
from twofold_chassis.postgres import Pool
from twofold_chassis.refusals import StoreUnavailable
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_registry.migrate import migrate
from twofold_registry.revisions import Revision
from twofold_registry.routers import Acked, Progress, Registered, RouterKey, Routers, Waited
from twofold_registry.store.feed import PostgresRegistrations
from twofold_registry.store.reads import read_head

ONE, TWO = RouterKey("r1", "a"), RouterKey("r2", "a")
LONG_S = 3600.0


@pytest.fixture
async def pool(postgres_server: EmbeddedPostgres) -> AsyncIterator[Pool]:
    """The system's connections to a migrated database whose epoch is old."""
    async with own_database(postgres_server, "routers") as urls:
        database = settings_of_database(urls)
        await migrate(database)
        system = await postgres.open_pool(database.system, name="test")
        async with postgres.connection(system) as connection:
            await connection.execute("UPDATE registry.registry_head SET epoch_at = now() - interval '1 day'")
        yield system
        await postgres.close_pool(system)


async def head(pool: Pool) -> Revision:
    async with postgres.connection(pool) as connection:
        return await read_head(connection)


@contextlib.asynccontextmanager
async def waiting(routers: Routers, revision: Revision) -> AsyncIterator["asyncio.Task[Waited]"]:
    task = asyncio.create_task(routers.until_all(revision))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_nobody_waits_where_no_router_is_registered(pool: Pool) -> None:
    assert await Routers(PostgresRegistrations(pool), lease_s=LONG_S / 100).until_all(await head(pool)) == Waited(0, 0)


async def test_waiting_ends_when_the_last_has_acknowledged(pool: Pool) -> None:
    registrations = PostgresRegistrations(pool)
    routers = Routers(registrations, lease_s=LONG_S / 100)
    await routers.register(ONE)
    await routers.register(TWO)
    now = await head(pool)
    async with waiting(routers, now) as task:
        await registrations.ack([Acked(ONE, now.epoch, now.number)])
        await registrations.ack([Acked(TWO, now.epoch - 1, now.number + 5)])  # of another history
        progress = await registrations.progress()
        assert [router.acked.epoch for router in progress.routers] == [now.epoch, now.epoch - 1]
        assert not task.done()
        routers.ack(TWO, now.epoch, now.number + 1)
        assert await task == Waited(2, 0)


async def test_who_does_not_acknowledge_is_waited_for_until_its_lease_is_over(pool: Pool) -> None:
    routers = Routers(PostgresRegistrations(pool), lease_s=0.2)
    await routers.register(ONE)
    began = boot_s()
    assert await routers.until_all(await head(pool)) == Waited(0, 1)
    assert boot_s() - began >= 0.25


async def test_who_has_left_is_not_waited_for(pool: Pool) -> None:
    routers = Routers(PostgresRegistrations(pool), lease_s=LONG_S / 100)
    await routers.register(ONE)
    async with waiting(routers, await head(pool)) as task:
        await routers.leave(ONE)
        assert await task == Waited(0, 0)


async def test_in_a_young_epoch_nobody_trusts_that_the_table_knows_all_routers(pool: Pool) -> None:
    began = boot_s()
    async with postgres.connection(pool) as connection:
        await connection.execute("UPDATE registry.registry_head SET epoch_at = clock_timestamp()")
    routers = Routers(PostgresRegistrations(pool), lease_s=0.2)
    assert await routers.until_all(await head(pool)) == Waited(0, 0)
    assert boot_s() - began >= 0.25


class Silent:
    """Registrations that cannot be asked."""

    asked = 0

    async def progress(self) -> Progress:
        self.asked += 1
        raise StoreUnavailable("away", retry_after_s=1.0)

    async def ack(self, acks: Sequence[Acked]) -> None:
        raise StoreUnavailable("away", retry_after_s=1.0)

    async def register(self, router: RouterKey) -> None: ...

    async def renew(self, routers: Sequence[RouterKey]) -> None: ...

    async def leave(self, router: RouterKey) -> None: ...


async def test_the_lease_runs_out_also_where_nobody_can_be_asked() -> None:
    silent = Silent()
    routers = Routers(silent, lease_s=0.1)
    routers.ack(ONE, 1, 1)  # lost, which costs those who wait the lease
    began = boot_s()
    assert await routers.until_all(Revision(1, 1)) == Waited(0, 0)
    assert boot_s() - began >= 0.15
    assert silent.asked
    await routers.close()


async def test_the_lease_runs_out_also_where_nobody_answers() -> None:
    class Deaf(Silent):
        async def progress(self) -> Progress:
            await asyncio.Event().wait()
            raise AssertionError

    async with asyncio.timeout(20):
        assert await Routers(Deaf(), lease_s=0.1).until_all(Revision(1, 1)) == Waited(0, 0)


async def test_the_lease_runs_out_also_where_asking_is_broken() -> None:
    class Broken(Silent):
        async def progress(self) -> Progress:
            self.asked += 1
            raise LookupError("a defect")

    broken = Broken()
    async with asyncio.timeout(20):
        assert await Routers(broken, lease_s=0.1).until_all(Revision(1, 1)) == Waited(0, 0)
    assert broken.asked


async def test_another_postgres_is_not_trusted_to_know_all_routers_before_its_epoch_has_begun(pool: Pool) -> None:
    now = await head(pool)
    async with postgres.connection(pool) as connection:
        await connection.execute("UPDATE registry.registry_head SET fingerprint = 'the one before'")
    began = boot_s()
    assert await Routers(PostgresRegistrations(pool), lease_s=0.2).until_all(now) == Waited(0, 0)
    assert boot_s() - began >= 0.25


async def test_all_who_wait_share_one_question() -> None:
    class Slow(Silent):
        async def progress(self) -> Progress:
            self.asked += 1
            return Progress(LONG_S, [] if self.asked > 3 else [Registered(Acked(ONE, 0, 0), None)])  # type: ignore[arg-type]

    slow = Slow()
    routers = Routers(slow, lease_s=LONG_S / 100)
    assert await asyncio.gather(*(routers.until_all(Revision(1, 1)) for _ in range(50))) == [Waited(0, 0)] * 50
    assert slow.asked == 4


async def test_an_acknowledgement_never_goes_back(pool: Pool) -> None:
    registrations = PostgresRegistrations(pool)
    await registrations.register(ONE)
    for epoch, revision in ((5, 7), (5, 6), (4, 9)):
        await registrations.ack([Acked(ONE, epoch, revision)])
    (router,) = (await registrations.progress()).routers
    assert router.acked == Acked(ONE, 5, 7)


async def test_only_what_is_short_of_half_its_time_is_renewed_and_nothing_that_has_run_out(pool: Pool) -> None:
    registrations = PostgresRegistrations(pool)
    routers = Routers(registrations, lease_s=1.0)
    await routers.register(ONE)
    await routers.register(TWO)
    before = {router.acked.router: router.expires_at for router in await routers.list()}
    await routers.renew([ONE, TWO], {ONE: 29_000, TWO: 31_000})
    after = {router.acked.router: router.expires_at for router in await routers.list()}
    assert after[ONE] > before[ONE]
    assert after[TWO] == before[TWO]
    async with postgres.connection(pool) as connection:
        await connection.execute("UPDATE registry.watchers SET expires_at = now() - interval '1 second'")
    await registrations.renew([ONE])
    assert await routers.list() == []


async def test_no_more_routers_are_listed_than_the_contract_says() -> None:
    class Crowded(Silent):
        async def progress(self) -> Progress:
            acked = [Acked(RouterKey(f"r{number:04}", "a"), 0, 0) for number in range(1001)]
            return Progress(LONG_S, [Registered(one, datetime.now(UTC)) for one in acked])

    listed = await Routers(Crowded(), lease_s=1.0).list()
    assert [one.acked.router.router_id for one in listed] == [f"r{number:04}" for number in range(1000)]
