"""C1–C5, C9: routers over the real registry, and whatever becomes of Redis, the registry, the network and themselves.

Safety alone is judged, by what callers may rely on: an answer counts at the moment that it came, if that is within its
`valid_for` from when the call was sent. Leases are short so that tests are; nothing here must happen within a time.
"""

import asyncio
import contextlib
import functools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.databases import settings_of_database
from tests.registry.stubs import Connection, Registry, settings_of
from tests.router.conftest import Client, answered, refused
from twofold import refusals
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, change_pb2, permission_pb2, user_pb2
from twofold.router.v1 import routing_pb2
from twofold_chassis import postgres
from twofold_chassis.clocks import boot_s
from twofold_chassis.settings import DatabaseSettings, RedisSettings
from twofold_cli.embedded import ServiceProcess
from twofold_cli.embedded.ports import free_port
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis
from twofold_cli.environment import bare_environment
from twofold_registry.app import registry
from twofold_registry.permission_service import PermissionService
from twofold_router.app import router
from twofold_router.settings import RouterSettings, Settings

LEASE_S = 0.5
LEASE_MS = int(LEASE_S * 1000)
MARGIN_S = 0.05
TIMES = {"lease_ms": LEASE_MS, "ping_ms": 60, "silence_ms": 300}
WAIT_S = 30.0
PROCESS, CACHE, OWNER = (
    routing_pb2.ROUTE_SOURCE_PROCESS,
    routing_pb2.ROUTE_SOURCE_CACHE,
    routing_pb2.ROUTE_SOURCE_REGISTRY,
)
Code = grpc.StatusCode


@dataclass
class House:
    """A registry with a database of its own, and routers that ask it."""

    stack: AsyncExitStack
    database: DatabaseSettings
    redis: RedisSettings
    port: int
    ws: str
    checks: list[Any] = field(default_factory=list)
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def open(self) -> None:
        self._running = AsyncExitStack()
        settings = settings_of(self.database, lease_ms=LEASE_MS, port=self.port)
        await self._running.enter_async_context(registry(settings))

    async def close(self) -> None:
        await self._running.aclose()

    async def furnish(self) -> "House":
        channel = await self.stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{self.port}"))
        self.api = Registry(channel)
        await self.api.make_workspace(self.ws)
        await self.api.make_user(self.ws, "ada")
        await self.api.make_user(self.ws, "root", role=user_pb2.ROLE_ADMIN)
        await self.make_agent("agent")
        return self

    async def make_agent(self, agent_id: str, **values: Any) -> None:
        values = {"state": agent_pb2.AGENT_STATE_PUBLISHED, **values}
        await self.api.make_agent(self.ws, agent_id, **values)

    async def grant(self, user_id: str = "ada", agent_id: str = "agent", **values: Any) -> bytes:
        return (await self.api.grant(self.ws, user_id, agent_id, **values)).revision_token

    async def revoke(self, *, wait: bool = False) -> permission_pb2.RevokeResponse:
        request = permission_pb2.RevokeRequest(workspace_id=self.ws, user_id="ada", agent_id="agent")
        request.wait = permission_pb2.REVOKE_WAIT_ALL_ROUTERS if wait else permission_pb2.REVOKE_WAIT_NONE
        return await self.api.permissions.Revoke(request, timeout=WAIT_S)

    @contextlib.asynccontextmanager
    async def routing(self, *, through: int | None = None, **times: int) -> AsyncIterator[Client]:
        options = {"port": 0, "drain_s": 0, "registry_target": f"127.0.0.1:{through or self.port}", **TIMES}
        options |= {"memory_target": "127.0.0.1:1", "peer_timeout_s": 1, **times}
        settings = Settings(redis=self.redis, router=RouterSettings(**options))
        async with router(settings) as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            yield Client(channel, running.metrics_port)

    async def router(self, *, through: int | None = None, **times: int) -> Client:
        return await self.stack.enter_async_context(self.routing(through=through, **times))

    async def routers(self) -> list[change_pb2.RegisteredRouter]:
        return list((await self.api.changes.ListRouters(change_pb2.ListRoutersRequest())).routers)

    @contextlib.asynccontextmanager
    async def owner(self) -> AsyncIterator[Connection]:
        connection = await asyncpg.connect(self.database.owner_url.get_secret_value())
        try:
            yield connection
        finally:
            await connection.close()


@contextlib.asynccontextmanager
async def a_house(database: DatabaseSettings, redis: RedisSettings, ws: str) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        house = House(stack, database, redis, free_port(), ws)
        await house.open()
        stack.push_async_callback(house.close)
        yield await house.furnish()


@pytest.fixture
async def house(
    postgres_server: EmbeddedPostgres, redis_settings: RedisSettings, workspace_id: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    """A registry with a database of its own; `checks` are the pairs that it was asked for."""
    database = settings_of_database(await postgres_server.create_database(workspace_id.replace("-", "_")))
    asked: list[Any] = []
    check = PermissionService.Check

    async def counted(self: PermissionService, request: permission_pb2.CheckRequest, context: Any) -> Any:
        asked.append((request.router_id, request.user_id))
        return await check(self, request, context)

    monkeypatch.setattr(PermissionService, "Check", counted)
    async with a_house(database, redis_settings, workspace_id) as house:
        house.checks = asked
        yield house


class Seen(NamedTuple):
    """One answer. `relied`: it came within the time for which it may be relied on."""

    sent_at: float
    came_at: float
    code: grpc.StatusCode
    relied: bool
    retry: bool
    source: int

    @property
    def yes(self) -> bool:
        return self.code is Code.OK


async def see(client: Client, ws: str, **fields: Any) -> Seen:
    sent_at = boot_s()
    try:
        answer = await client.resolve(ws, **{"timeout": 5, **fields})
    except grpc.aio.AioRpcError as error:
        return Seen(sent_at, boot_s(), error.code(), False, refusals.retry_after_s(error) is not None, 0)
    came_at = boot_s()
    relied = came_at < sent_at + answer.valid_for.ToMicroseconds() / 1e6
    return Seen(sent_at, came_at, Code.OK, relied, False, answer.permission_source)


async def known(client: Client, ws: str, **fields: Any) -> Seen:
    """The same; asked again while nobody can tell: a busy machine may need longer than a lease."""
    async with asyncio.timeout(WAIT_S):
        while (one := await see(client, ws, **fields)).code is Code.UNAVAILABLE:
            pass
    return one


@contextlib.asynccontextmanager
async def watched(*clients: Client, ws: str, **fields: Any) -> AsyncIterator[list[Seen]]:
    """Asks all the time; what was seen is complete when the block has ended."""
    seen: list[Seen] = []
    over = False

    async def ask(client: Client) -> None:
        while not over:
            seen.append(await see(client, ws, **fields))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(ask(client)) for client in clients for _ in range(2)]
    try:
        yield seen
    finally:
        over = True
        await asyncio.gather(*tasks)


def require_no_yes(seen: list[Seen], *, after: float, margin_s: float = 0.0) -> None:
    """No call that was sent later was allowed, and no answer that came later could be relied on."""
    wrong = [one for one in seen if one.yes and (one.sent_at > after + margin_s or (one.relied and one.came_at > after))]
    assert not wrong, (after, wrong)


async def until(so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await so():  # noqa: ASYNC110  (nothing else tells it)
            await asyncio.sleep(0.01)


async def until_seen(client: Client, ws: str, code: grpc.StatusCode, **fields: Any) -> None:
    async def so() -> bool:
        return (await see(client, ws, **fields)).code is code

    await until(so)


async def until_from_process(client: Client, ws: str, **fields: Any) -> None:
    async def so() -> bool:
        return (await see(client, ws, **fields)).source == PROCESS

    await until(so)


class Wire:
    """What lies between a router and its registry; `cut` holds everything back that is under way, in both directions."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._whole = asyncio.Event()
        self._whole.set()
        self._taken: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in self._taken:
                task.cancel()
            if self._taken:
                await asyncio.wait(self._taken)

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        self._whole.clear()
        try:
            yield
        finally:
            self._whole.set()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._taken.add(task)
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(far_writer)
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass  # the test is over, or one of the ends is
        finally:
            for one in writers:
                one.close()
            await asyncio.gather(*(one.wait_closed() for one in writers), return_exceptions=True)
            self._taken.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._whole.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


# C1 --------------------------------------------------------------------------------------------------------------------


async def test_c1_when_a_revoke_that_waits_has_returned_no_router_says_yes(house: House) -> None:
    one, two = await house.router(), await house.router()
    acked = 0
    async with watched(one, two, ws=house.ws) as seen:
        for _ in range(15):
            token = await house.grant()
            for client in (one, two):
                assert (await known(client, house.ws, min_revision_token=token)).yes
            answer = await house.revoke(wait=True)
            returned = boot_s()
            acked += answer.acked_routers
            for client in (one, two):
                assert (await known(client, house.ws)).code is Code.PERMISSION_DENIED
            require_no_yes(seen, after=returned)
            seen.clear()
    assert acked > 0  # it was not only the lease that was waited for


async def test_c1_a_revoke_that_does_not_wait_is_answered_against_for_no_longer_than_a_lease(house: House) -> None:
    wire = Wire(house.port)
    deaf, hearing = await house.router(through=await house.stack.enter_async_context(wire.open())), await house.router()
    for _ in range(2):
        token = await house.grant()
        for client in (deaf, hearing):
            assert (await known(client, house.ws, min_revision_token=token)).yes
            await until_from_process(client, house.ws)
        async with watched(deaf, hearing, ws=house.ws) as seen:
            with wire.cut():
                await house.revoke()
                returned = boot_s()
                await until_seen(hearing, house.ws, Code.PERMISSION_DENIED)
                await until_seen(deaf, house.ws, Code.UNAVAILABLE)  # it cannot tell: neither yes nor no
            await until_seen(deaf, house.ws, Code.PERMISSION_DENIED)
        require_no_yes(seen, after=returned + LEASE_S, margin_s=MARGIN_S)
        assert all(one.retry for one in seen if one.code is Code.UNAVAILABLE)


async def test_c1_who_waits_for_a_router_that_cannot_be_reached_waits_for_its_lease(house: House) -> None:
    wire = Wire(house.port)
    deaf, hearing = await house.router(through=await house.stack.enter_async_context(wire.open())), await house.router()
    token = await house.grant()
    for client in (deaf, hearing):
        assert (await known(client, house.ws, min_revision_token=token)).yes
        await until_from_process(client, house.ws)
    async with watched(deaf, hearing, ws=house.ws) as seen:
        with wire.cut():
            answer = await house.revoke(wait=True)
            returned = boot_s()
            await until_seen(deaf, house.ws, Code.UNAVAILABLE)
        await until_seen(deaf, house.ws, Code.PERMISSION_DENIED)
    require_no_yes(seen, after=returned)
    assert answer.expired_routers == 1


async def copies_in(redis: Redis) -> dict[Any, Any]:
    return {key: await redis.get(key) async for key in redis.scan_iter("c:*")}


@pytest.mark.parametrize("fate", ["killed", "flushed", "of yesterday", "stopped"])
async def test_c1_whatever_becomes_of_redis(
    postgres_server: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str, fate: str
) -> None:
    database = settings_of_database(await postgres_server.create_database(workspace_id.replace("-", "_")))
    settings = RedisSettings(host=own_redis.host, port=own_redis.port, password=SecretStr(own_redis.password), budget_ms=50)
    redis = Redis(host=own_redis.host, port=own_redis.port, password=own_redis.password)
    async with a_house(database, settings, workspace_id) as house, redis:
        one, two = await house.router(), await house.router()
        token = await house.grant()
        for client in (one, two):
            await until_seen(client, house.ws, Code.OK, min_revision_token=token)
            await until_from_process(client, house.ws)

        async def both_are_there() -> bool:
            return len(await copies_in(redis)) >= 2

        await until(both_are_there)
        yesterday = await copies_in(redis)
        async with watched(one, two, ws=house.ws) as seen:
            match fate:
                case "killed":
                    await own_redis.kill()
                case "stopped":
                    own_redis.pause()
                case "flushed":
                    await redis.flushall()
            try:
                await house.revoke(wait=True)
                returned = boot_s()
                if fate == "of yesterday":
                    await redis.flushall()
                    for key, value in yesterday.items():
                        await redis.set(key, value)
                for client in (one, two):
                    await until_seen(client, house.ws, Code.PERMISSION_DENIED)
                async with house.routing() as young:
                    assert (await see(young, house.ws)).code in (Code.PERMISSION_DENIED, Code.UNAVAILABLE)
                    await until_seen(young, house.ws, Code.PERMISSION_DENIED)
            finally:
                if fate == "stopped":
                    own_redis.resume()
        require_no_yes(seen, after=returned)
        # Who is denied anything is denied it; who is allowed it goes on.
        assert (await known(one, house.ws, user_id="root")).yes


@pytest.fixture
async def process(house: House, redis_settings: RedisSettings, servers_folder: Path) -> AsyncIterator[ServiceProcess]:
    """A router as a process of its own."""

    def environment() -> dict[str, str]:
        assert redis_settings.password is not None
        named = {
            "REDIS__HOST": redis_settings.host,
            "REDIS__PORT": str(redis_settings.port),
            "REDIS__PASSWORD": redis_settings.password.get_secret_value(),
            "ROUTER__PORT": str(alone.port),
            "ROUTER__METRICS_PORT": str(alone.metrics_port),
            "ROUTER__REGISTRY_TARGET": f"127.0.0.1:{house.port}",
            "ROUTER__DRAIN_S": "0",
        }
        return {**bare_environment(), **named, **{f"ROUTER__{name.upper()}": str(value) for name, value in TIMES.items()}}

    alone = ServiceProcess("router", servers_folder / f"router-{uuid.uuid4().hex[:8]}.log", environment, start_s=60.0)
    await alone.start()
    yield alone
    await alone.terminate()


async def test_c1_a_router_that_stood_still_says_nothing_of_before(house: House, process: ServiceProcess) -> None:
    async with grpc.aio.insecure_channel(process.target) as channel:
        client = Client(channel)
        for _ in range(3):
            token = await house.grant()
            await until_seen(client, house.ws, Code.OK, min_revision_token=token)
            await until_from_process(client, house.ws)
            under_way = [asyncio.create_task(see(client, house.ws)) for _ in range(200)]
            await asyncio.sleep(0)
            process.pause()
            try:
                answer = await house.revoke(wait=True)
                returned = boot_s()
                late = [asyncio.create_task(see(client, house.ws)) for _ in range(20)]
                await asyncio.sleep(0.05)  # so that they lie there when it goes on; if not, no less is asked
            finally:
                process.resume()
            seen = list(await asyncio.gather(*under_way, *late))
            require_no_yes(seen, after=returned)
            assert answer.expired_routers >= 1
            await until_seen(client, house.ws, Code.PERMISSION_DENIED)


async def test_c1_a_router_that_ends_is_not_waited_for(house: House) -> None:
    async with house.routing() as ending:
        await house.grant()
        await until_seen(ending, house.ws, Code.OK)
        assert len(await house.routers()) == 1
    assert await house.routers() == []


# C2 --------------------------------------------------------------------------------------------------------------------


ASKED = ({"user_id": "ada"}, {"user_id": "nobody"}, {"user_id": "root", "agent_id": "none"}, {"user_id": "root"})
"""Who is allowed, who is denied, who may know that there is no such agent, and whose pair nobody has asked for."""


async def require_no_word(house: House, client: Client) -> None:
    """For longer than a lease nothing has been heard: nothing is said, whatever was known."""
    for fields in ASKED:
        await until_seen(client, house.ws, Code.UNAVAILABLE, **fields)
    seen = await asyncio.gather(*(see(client, house.ws, **fields) for fields in ASKED * 5))
    assert {(one.code, one.retry) for one in seen} == {(Code.UNAVAILABLE, True)}
    with refused(Code.UNAVAILABLE, "REASON_PEER_UNAVAILABLE"):
        await client.check(house.ws)


async def test_c2_without_the_registry_nothing_is_said_and_with_it_all_is_by_itself(house: House) -> None:
    client = await house.router()
    token = await house.grant()
    assert (await known(client, house.ws, min_revision_token=token)).yes
    assert (await known(client, house.ws, **ASKED[1])).code is Code.PERMISSION_DENIED
    assert (await known(client, house.ws, **ASKED[2])).code is Code.NOT_FOUND
    await house.close()
    await require_no_word(house, client)
    await house.open()
    await until_seen(client, house.ws, Code.OK)
    await until_from_process(client, house.ws)
    await until_seen(client, house.ws, Code.PERMISSION_DENIED, **ASKED[1])
    await until_seen(client, house.ws, Code.NOT_FOUND, **ASKED[2])


async def test_c2_c3_without_postgres_nothing_is_said_and_another_one_begins_anew(
    own_postgres: EmbeddedPostgres, redis_settings: RedisSettings, workspace_id: str
) -> None:
    async with a_house(settings_of_database(own_postgres), redis_settings, workspace_id) as house:
        client = await house.router()
        token = await house.grant()
        assert (await known(client, house.ws, min_revision_token=token)).yes
        await own_postgres.kill()
        for fields in ASKED[:2]:
            await until_seen(client, house.ws, Code.UNAVAILABLE, **fields)
        seen = await asyncio.gather(*(see(client, house.ws, **fields) for fields in ASKED * 5))
        assert {(one.code, one.retry) for one in seen} == {(Code.UNAVAILABLE, True)}
        await own_postgres.start()
        await until_from_process(client, house.ws)
        with refused(Code.ABORTED, "REASON_HISTORY_CHANGED"):
            await client.resolve(house.ws, min_revision_token=token)


# C3 --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_compacted", [False, True], ids=["told again", "compacted"])
async def test_c3_a_restarted_router_does_not_use_an_old_yes(house: House, is_compacted: bool) -> None:
    async with house.routing() as old:
        token = await house.grant()
        assert (await known(old, house.ws, min_revision_token=token)).yes
        async with house.routing() as other:  # the copy is there for all
            assert (await known(other, house.ws, min_revision_token=token)).source == CACHE
    await house.revoke()
    if is_compacted:
        async with house.owner() as owner:
            await owner.execute("DELETE FROM registry.changes")
            await owner.execute("UPDATE registry.registry_head SET compacted = revision")
    async with house.routing() as young:
        for _ in range(5):
            assert not (await see(young, house.ws)).yes
        await until_seen(young, house.ws, Code.PERMISSION_DENIED)


async def test_c3_in_a_new_epoch_every_copy_is_dropped(house: House) -> None:
    one, two = await house.router(), await house.router()
    token = await house.grant()
    for client in (one, two):
        assert (await known(client, house.ws, min_revision_token=token)).yes
        await until_from_process(client, house.ws)
    pool = await postgres.open_pool(house.database, name="test")
    async with watched(one, two, ws=house.ws) as seen:
        # A past without the grant, as after a restore: no change tells of it.
        async with postgres.transaction(pool, (house.ws,)) as connection:
            await connection.execute("DELETE FROM registry.grants WHERE workspace_id = $1", house.ws)
        async with house.owner() as owner:
            await owner.execute("UPDATE registry.registry_head SET epoch = epoch + 1, epoch_at = clock_timestamp()")
        began = boot_s()
        for client in (one, two):
            await until_seen(client, house.ws, Code.PERMISSION_DENIED)
    await postgres.close_pool(pool)
    require_no_yes(seen, after=began + LEASE_S, margin_s=MARGIN_S)
    for client in (one, two):
        with refused(Code.ABORTED, "REASON_HISTORY_CHANGED"):
            await client.resolve(house.ws, min_revision_token=token)
    token = await house.grant()
    for client in (one, two):
        await until_seen(client, house.ws, Code.OK, min_revision_token=token)


async def test_c3_a_token_of_a_new_epoch_is_not_answered_from_copies_of_the_old_one(house: House) -> None:
    client = await house.router()
    old = await house.grant()
    assert (await known(client, house.ws, min_revision_token=old)).yes
    for _ in range(10):
        async with house.owner() as owner:
            await owner.execute("UPDATE registry.registry_head SET epoch = epoch + 1, epoch_at = clock_timestamp()")
        new = (await house.revoke()).revision_token
        assert not (await see(client, house.ws, min_revision_token=new)).yes
        token = await house.grant()
        await until_seen(client, house.ws, Code.OK, min_revision_token=token)


# C4 --------------------------------------------------------------------------------------------------------------------


async def test_c4_a_token_of_a_grant_is_honoured_at_once_on_every_router(house: House) -> None:
    clients = [await house.router(), await house.router()]
    for _ in range(15):
        for client in clients:
            await until_seen(client, house.ws, Code.PERMISSION_DENIED)
        token = await house.grant()
        assert [
            one.code
            for one in await asyncio.gather(*(known(client, house.ws, min_revision_token=token) for client in clients))
        ] == [
            Code.OK,
            Code.OK,
        ]
        await house.revoke(wait=True)


async def test_c4_what_the_stream_has_passed_costs_no_question(house: House) -> None:
    client = await house.router()
    await until_seen(client, house.ws, Code.OK, user_id="root")
    token = await house.grant()  # of something else: the copy is older, and as good
    assert (await known(client, house.ws, min_revision_token=token)).yes
    await until_from_process(client, house.ws, user_id="root", min_revision_token=token)
    asked = len(house.checks)

    async def from_copies() -> bool:
        seen = [await see(client, house.ws, user_id=user, min_revision_token=token) for user in ("root", "ada")]
        return all(one.source == PROCESS for one in seen)

    await until(from_copies)
    # Only a machine that stood still for a lease between two looks may have asked again.
    assert len(house.checks) <= asked + 2


# What is heard of targets ----------------------------------------------------------------------------------------------


async def test_what_one_router_hears_of_a_target_is_known_to_the_other_and_to_the_registry(house: House) -> None:
    one, two = await house.router(), await house.router()
    for client in (one, two):
        await answered(functools.partial(client.resolve, house.ws, user_id="root"))
    failed = routing_pb2.Outcome(agent_id="agent", generation=1, outcome=routing_pb2.TARGET_OUTCOME_DIAL_FAILED)

    async def other_has_heard() -> bool:
        await one.report(house.ws, failed)  # it rests for a second only: until it is heard there it fails again
        (target,) = (await two.explain(house.ws, user_id="root")).targets
        return target.dial_failures > 0

    async def registry_has_heard() -> bool:
        request = agent_pb2.GetAgentRequest(workspace_id=house.ws, agent_id="agent")
        seen = (await house.api.agents.GetAgent(request)).agent.observations
        return [(one.target, one.state, one.generation) for one in seen] == [("", agent_pb2.OBSERVED_STATE_FAILING, 1)]

    await until(other_has_heard)
    await until(registry_has_heard)


# C5 --------------------------------------------------------------------------------------------------------------------


async def test_c5_many_cold_questions_for_few_pairs_are_few_questions_to_the_registry(house: House) -> None:
    users = [f"user-{number}" for number in range(20)]
    for user in users:
        await house.api.make_user(house.ws, user)
    for user in users[::2]:
        token = await house.grant(user)
    # All of them in one event loop: that takes longer than the leases of the other tests.
    patient = {"lease_ms": 60_000, "silence_ms": 60_000, "peer_timeout_s": 60}
    clients = [await house.router(**patient), await house.router(**patient)]
    for client in clients:
        await until_seen(client, house.ws, Code.OK, user_id="root", min_revision_token=token)
    house.checks.clear()
    # 10,000 questions; a server of gRPC takes a thousand calls at once, so most of them come in batches.
    alone = [see(client, house.ws, user_id=user, timeout=WAIT_S) for _ in range(25) for client in clients for user in users]
    batches = [
        client.resolve_all(house.ws, *[(user, "agent") for user in users] * 25) for _ in range(9) for client in clients
    ]
    seen, told = await asyncio.gather(asyncio.gather(*alone), asyncio.gather(*batches))
    assert len(seen) + sum(map(len, told)) == 10_000
    assert {one.code for one in seen} <= {Code.OK, Code.PERMISSION_DENIED}
    refused_with = {one.refusal.reason for results in told for one in results if one.HasField("refusal")}
    assert refused_with == {Reason.REASON_NOT_PERMITTED}
    assert house.checks
    for router_id in {router_id for router_id, _ in house.checks}:
        assert len([one for one, _ in house.checks if one == router_id]) <= len(users)


# C9 --------------------------------------------------------------------------------------------------------------------


async def test_c9_each_refusal_is_the_one_that_it_is(house: House) -> None:
    client = await house.router()
    await house.make_agent("draft", state=agent_pb2.AGENT_STATE_DRAFT)
    await house.make_agent("gone")
    gone = agent_pb2.Agent(workspace_id=house.ws, agent_id="gone", state=agent_pb2.AGENT_STATE_GONE)
    await house.api.agents.UpdateAgent(agent_pb2.UpdateAgentRequest(agent=gone, update_mask=FieldMask(paths=["state"])))
    await house.grant("ada", "draft")
    token = await house.grant()
    expected = {
        ("ada", "agent"): (Code.OK, ""),
        ("root", "agent"): (Code.OK, ""),
        ("nobody", "agent"): (Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"),
        ("ada", "none"): (Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"),  # not that there is none
        ("nobody", "none"): (Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"),
        ("ada", "gone"): (Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"),
        ("root", "none"): (Code.NOT_FOUND, "REASON_AGENT_UNKNOWN"),
        ("root", "gone"): (Code.FAILED_PRECONDITION, "REASON_AGENT_GONE"),
        ("root", "draft"): (Code.FAILED_PRECONDITION, "REASON_AGENT_NOT_PUBLISHED"),
        ("ada", "draft"): (Code.FAILED_PRECONDITION, "REASON_AGENT_NOT_PUBLISHED"),
    }
    for _ in range(3):  # read, and out of copies
        for (user_id, agent_id), (code, reason) in expected.items():
            fields: dict[str, Any] = {"user_id": user_id, "agent_id": agent_id, "min_revision_token": token}
            asked = functools.partial(client.resolve, house.ws, **fields)
            if code is Code.OK:
                await answered(asked)
                continue
            with refused(code, reason):
                await answered(asked)
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await answered(lambda: client.resolve("no such workspace"))
    count = len(house.checks)
    for user_id, agent_id in expected:
        await until_from_copy(client, house.ws, user_id, agent_id)
    assert len(house.checks) <= count + len(expected)


async def until_from_copy(client: Client, ws: str, user_id: str, agent_id: str) -> None:
    async def so() -> bool:
        return (await answered(lambda: client.check(ws, user_id=user_id, agent_id=agent_id))).source == PROCESS

    await until(so)


async def test_c9_what_is_deleted_and_restored_is_answered_so(house: House) -> None:
    client = await house.router()
    key: dict[str, Any] = {"workspace_id": house.ws, "agent_id": "agent"}
    token = await house.grant()
    for _ in range(5):
        assert (await known(client, house.ws, min_revision_token=token)).yes
        deleted = await house.api.agents.DeleteAgent(agent_pb2.DeleteAgentRequest(**key))
        for user_id, code in (("ada", Code.PERMISSION_DENIED), ("root", Code.NOT_FOUND)):
            one = await known(client, house.ws, user_id=user_id, min_revision_token=deleted.revision_token)
            assert one.code is code
        restored = await house.api.agents.UndeleteAgent(agent_pb2.UndeleteAgentRequest(**key))
        token = restored.revision_token
        for user_id in ("ada", "root"):
            assert (await known(client, house.ws, user_id=user_id, min_revision_token=token)).yes


async def test_c9_a_grant_ends_by_the_clock_of_the_database_and_nobody_relies_on_it_longer(house: House) -> None:
    client = await house.router()
    await until_seen(client, house.ws, Code.PERMISSION_DENIED)
    async with house.owner() as owner:
        before = boot_s()
        now_us = await owner.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        after = boot_s()
    ends = Timestamp()
    ends.FromMicroseconds(now_us + 1_500_000)
    token = await house.grant(expire_time=ends)
    first = await known(client, house.ws, min_revision_token=token)
    assert first.yes or first.came_at > before + 1.5 - LEASE_S  # never early by more than a lease
    async with watched(client, ws=house.ws) as seen:
        await until_seen(client, house.ws, Code.PERMISSION_DENIED)
    # Its end lies between `before` and `after`, and a second and a half.
    assert all(one.came_at > before + 1.5 - LEASE_S for one in seen if one.code is Code.PERMISSION_DENIED)
    require_no_yes(seen, after=after + 1.5)
