"""Following the registry's changes: what the stream may do to a router, and what it never makes it say."""

import asyncio
import contextlib

import grpc
import pytest

from tests.router.conftest import Client, Start, answered, refused
from tests.router.fakes import FakeRegistry
from twofold.registry.v1 import change_pb2
from twofold.router.v1 import routing_pb2

Code = grpc.StatusCode
PROCESS, REGISTRY = routing_pb2.ROUTE_SOURCE_PROCESS, routing_pb2.ROUTE_SOURCE_REGISTRY
SHORT = {"lease_ms": 600, "ping_ms": 50, "silence_ms": 300}


async def until_from(client: Client, ws: str, source: routing_pb2.RouteSource.ValueType) -> None:
    async with asyncio.timeout(20):
        while (await answered(lambda: client.check(ws))).source != source:  # noqa: ASYNC110  (nothing else tells it)
            await asyncio.sleep(0.01)


async def test_a_router_opens_its_stream_by_name_and_then_goes_on_where_it_was(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    changes = registry.changes
    async with start() as router:
        await router.resolve(ws)
        opened = changes.opened[-1]
        assert opened.router.router_id
        assert opened.router.incarnation
        assert not opened.HasField("place")
        registry.grant(ws, "bob", "agent")
        await changes.applied()
        count = len(changes.opened)
        changes.end_streams()
        registry.grant(ws, "bob", "agent")
        await changes.until(lambda: len(changes.opened) >= count + 2)  # this router, and the session's
        await changes.applied()
        again = [one for one in changes.opened[count:] if one.router == opened.router]
        assert (again[0].place.epoch, again[0].place.revision) == (changes.epoch, changes.revision.number - 1)
        assert (await router.resolve(ws)).permission_source == PROCESS  # what it knew is as good as before


async def test_a_router_that_ends_says_that_nobody_needs_to_wait_for_it(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    async with start() as ending:
        await ending.resolve(ws)
        router = registry.changes.opened[-1].router
    assert registry.changes.left == [(router.router_id, router.incarnation)]


async def test_who_has_not_heard_of_a_revoke_answers_from_before_it_for_no_longer_than_a_lease(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    loop = asyncio.get_running_loop()
    async with start(**SHORT) as router:
        await answered(lambda: router.resolve(ws))
        registry.changes.hold_changes()
        registry.revoke(ws, "ada", "agent")
        revoked = loop.time()
        last = revoked

        async def asked() -> float:
            at = loop.time()
            await router.resolve(ws)
            return at

        async with asyncio.timeout(20):
            with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
                while True:
                    last = await answered(asked)
        assert last - revoked < 0.6
        registry.grant(ws, "ada", "agent")
        assert (await answered(lambda: router.check(ws))).source == REGISTRY
        registry.changes.go_on()
        await registry.changes.applied()
        await until_from(router, ws, PROCESS)


async def test_without_checkpoints_each_answer_is_read_and_with_them_none(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    async with start(**SHORT) as router:
        await answered(lambda: router.resolve(ws))
        registry.changes.hold_checkpoints()
        await until_from(router, ws, REGISTRY)
        for _ in range(2):
            answer = await answered(lambda: router.check(ws))
            assert (answer.source, answer.allowed) == (REGISTRY, True)
            assert 0 < answer.valid_for.ToMilliseconds() <= 600
        registry.changes.go_on()
        await until_from(router, ws, PROCESS)


async def test_an_answer_is_good_for_no_longer_than_the_lease(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    async with start(**SHORT) as router:
        await answered(lambda: router.resolve(ws))
        left_ms: list[int] = []
        while len(left_ms) < 5:  # a machine that stands still for a lease has shown nothing
            registry.changes.go_on()
            await until_from(router, ws, PROCESS)
            registry.changes.hold_checkpoints()
            left_ms.clear()
            while (answer := await answered(lambda: router.check(ws))).source == PROCESS:
                left_ms.append(answer.valid_for.ToMilliseconds())
                await asyncio.sleep(0.02)
        assert left_ms[0] <= 600
        assert left_ms == sorted(left_ms, reverse=True)


async def test_a_router_that_is_not_registered_any_more_answers_from_nothing(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    async with start() as router:
        await router.resolve(ws)
        registry.changes.unregister()
        with refused(Code.UNAVAILABLE, "REASON_PEER_UNAVAILABLE") as told:
            await router.resolve(ws, user_id="bob")
        assert b"RetryInfo" in told.details
        registry.changes.registers = True
        registry.changes.end_streams()
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert not (await router.check(ws, user_id="bob")).allowed
                    break


async def test_in_another_epoch_nothing_of_the_old_one_is_answered(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    async with start() as router:
        await router.resolve(ws)
        old = registry.token
        del registry.verdicts[ws, "ada", "agent"]  # it never was, in this past
        registry.changes.begin_epoch()
        registry.grant(ws, "bob", "agent")
        await registry.changes.applied()
        with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
            await router.resolve(ws)
        with refused(Code.ABORTED, "REASON_HISTORY_CHANGED"):
            await router.resolve(ws, user_id="bob", min_revision_token=old)
        assert (await router.resolve(ws, user_id="bob", min_revision_token=registry.token)).url


async def test_where_the_past_is_not_kept_what_was_known_before_is_read_again(
    start: Start, client: Client, registry: FakeRegistry, ws: str
) -> None:
    changes = registry.changes
    async with start() as router:
        await router.resolve(ws)
        changes.opens.clear()
        changes.end_streams()
        await changes.until(lambda: not changes.streams)
        registry.move(ws, "agent", "http://moved")
        registry.grant(ws, "bob", "agent")
        changes.compact()
        changes.opens.set()
        registry.grant(ws, "eve", "agent")
        await changes.applied()
        answer = await router.resolve(ws)
        assert (answer.url, answer.source) == ("http://moved", REGISTRY)


@pytest.mark.parametrize("why", [change_pb2.WATCH_RESYNC_REASON_SLOW, change_pb2.WATCH_RESYNC_REASON_COMPACTED])
async def test_a_stream_that_cannot_go_on_is_opened_again(
    client: Client, registry: FakeRegistry, ws: str, why: change_pb2.WatchResyncReason.ValueType
) -> None:
    await client.resolve(ws)
    ended = set(registry.changes.streams)
    registry.changes.end_streams(why)
    registry.revoke(ws, "ada", "agent")
    # Another one: that there was none in between may be over before anybody looks.
    await registry.changes.until(lambda: set(registry.changes.streams) - ended)
    await registry.changes.applied()
    with refused(Code.PERMISSION_DENIED, "REASON_NOT_PERMITTED"):
        await client.resolve(ws)
