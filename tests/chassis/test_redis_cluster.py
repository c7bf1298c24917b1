"""A Redis Cluster: each command reaches the node that has its key, also while slots move and masters die."""

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from tests.chassis.redis_servers import Server, cluster, running, settings_of
from tests.waiting import until
from twofold_chassis.redis import RedisLink, RedisUnavailable, Script, losable, open_link
from twofold_chassis.redis_cluster import slot_of
from twofold_chassis.start import StartError
from twofold_cli.embedded.redis import EmbeddedRedis


def script(name: str, source: str) -> Script:
    return Script(name, source, hashlib.sha1(source.encode()).hexdigest())


INCREMENT = script("increment", "return redis.call('INCR', KEYS[1])")


def key_in(slot: int) -> str:
    """Some key of that slot."""
    return next(f"k{number}" for number in range(10**7) if slot_of(("GET", f"k{number}")) == slot)


@pytest.fixture(scope="module")
async def nodes(servers_folder: Path) -> AsyncIterator[list[Server]]:
    """Three masters, for tests that leave them as they are."""
    async with cluster(servers_folder / f"cluster-{uuid.uuid4().hex[:8]}") as nodes:
        yield nodes


@contextlib.asynccontextmanager
async def linked(node: Server, **others: object) -> AsyncIterator[RedisLink]:
    link = await open_link(settings_of(node, cluster=True, **others), must_keep=True)
    yield link
    await link.close()


@pytest.mark.parametrize(
    "key", ["a", "thread:{ws/t}:messages", "{}a", "{a", "a}{b}{c}", "{{a}}", "schön", "foo{}{bar}", "x" * 1000, ""]
)
async def test_a_key_has_the_slot_that_the_server_says(nodes: list[Server], key: str) -> None:
    assert slot_of(("GET", key)) == slot_of(("GET", key.encode())) == await nodes[0].asked("CLUSTER", "KEYSLOT", key)


def test_the_first_key_of_a_command_decides() -> None:
    slot = slot_of(("GET", "a"))
    assert slot_of(("evalsha", "hash", 2, "a", "{a}b", "argument")) == slot
    assert slot_of(("XREADGROUP", "GROUP", "g", "me", "COUNT", 1, "STREAMS", "a", ">")) == slot
    assert slot_of(("XINFO", "STREAM", "a")) == slot
    assert slot_of(("PING",)) is None


@pytest.mark.parametrize("keys", [("a", "b"), ("{a}1", "{a}2", "{b}1"), ()])
async def test_a_script_whose_keys_do_not_share_a_slot_is_a_defect_of_ours(
    nodes: list[Server], keys: tuple[str, ...]
) -> None:
    async with linked(nodes[0]) as link:
        with pytest.raises(ValueError, match="share a hash tag"):
            await link.run(INCREMENT, keys, ())


async def test_commands_of_many_callers_reach_the_nodes_that_have_their_keys(nodes: list[Server]) -> None:
    prefix = uuid.uuid4().hex
    async with linked(nodes[1]) as link:

        async def use(number: int) -> None:
            await link.call("SET", f"{prefix}{number}", number, "PX", 60_000)
            assert await link.call("GET", f"{prefix}{number}") == b"%d" % number

        await asyncio.gather(*(use(number) for number in range(300)))
    sizes = [len(await node.asked("KEYS", f"{prefix}*")) for node in nodes]
    assert sum(sizes) == 300
    assert min(sizes) > 0


async def test_a_script_is_sent_to_each_node_that_does_not_know_it_and_then_runs_once(nodes: list[Server]) -> None:
    prefix = uuid.uuid4().hex
    async with linked(nodes[0]) as link:
        await link.call("SCRIPT", "FLUSH")
        for expected in (1, 2):
            answers = await asyncio.gather(*(link.run(INCREMENT, [f"{prefix}{number}"], []) for number in range(30)))
            assert answers == [expected] * 30
        for node in nodes:
            assert await node.asked("SCRIPT", "EXISTS", INCREMENT.sha) == [1]


async def test_whether_it_answers_is_asked_of_every_node_and_leaves_the_generation_as_it_is(nodes: list[Server]) -> None:
    async with linked(nodes[0], budget_ms=300) as link:
        assert await link.answers()
        before = link.generation
        for number in range(20):
            await link.call("GET", f"{number}")
        assert await link.answers()
        assert link.generation == before
        await nodes[2].asked("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        async def changed() -> bool:
            return await link.answers() and link.generation > before

        await until(changed)
        nodes[1].pause()
        try:
            assert not await link.answers(), "one that is silent is enough"
            assert not link.breaker.open
        finally:
            nodes[1].resume()
        await until(link.answers)


async def test_a_slot_that_has_moved_is_followed_and_remembered(nodes: list[Server]) -> None:
    slot = 100
    key = key_in(slot)
    ids = [(await node.asked("CLUSTER", "MYID")).decode() for node in nodes]
    async with linked(nodes[0]) as link:
        assert await link.answers()
        before = link.generation
        for source, target in ((0, 1), (1, 0)):
            # One that imports takes the slot under a new epoch: what the nodes have said of it before counts no longer.
            await nodes[target].asked("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
            await nodes[source].asked("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
            for node in (nodes[target], *nodes):  # first the one that gets it
                await node.asked("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
            assert await link.call("SET", key, target) == b"OK"
            assert await nodes[target].asked("GET", key) == b"%d" % target
            assert await link.run(INCREMENT, [key], []) == target + 1
            await nodes[target].asked("DEL", key)
        assert link.generation == before, "keys move with their slot: nothing older is behind it"


async def test_a_slot_on_its_way_is_served_by_both_its_nodes(nodes: list[Server]) -> None:
    slot = 200
    there, here = nodes[1], nodes[0]
    key = key_in(slot)
    ids = {node: (await node.asked("CLUSTER", "MYID")).decode() for node in nodes}
    async with linked(here) as link:
        await here.asked("SET", key, 7)
        await there.asked("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[here])
        await here.asked("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[there])
        try:
            assert await link.run(INCREMENT, [key], []) == 8, "what is still here is served here"
            await here.asked("MIGRATE", there.host, there.port, key, 0, 5000, "AUTH", there.password)
            answers = await asyncio.gather(*(link.run(INCREMENT, [key], []) for _ in range(20)))
            assert answers == list(range(9, 29)), "in order, and each once"
        finally:
            for node in (there, here):
                await node.asked("CLUSTER", "SETSLOT", slot, "NODE", ids[there])
        assert await link.call("GET", key) == b"28"
        for node in (here, there):
            await node.asked("CLUSTER", "SETSLOT", slot, "STABLE")


async def test_when_a_master_dies_its_replica_is_found_and_the_others_never_notice(servers_folder: Path) -> None:
    folder = servers_folder / f"cluster-{uuid.uuid4().hex[:8]}"
    async with cluster(folder, replicas=1, timeout_ms=1500) as (first, second, third, replica), linked(second) as link:
        for node in (first, second, third, replica):
            await node.asked("CONFIG", "SET", "cluster-require-full-coverage", "no")
        mine, other = key_in(1), key_in(16000)
        await link.call("SET", mine, "1")
        assert await first.asked("WAIT", 1, 5000) == 1
        seen = [link.generation]
        await first.kill()
        with pytest.raises(RedisUnavailable):
            await link.call("GET", mine)
        assert await link.call("SET", other, "1") == b"OK"
        assert not await link.answers()

        async def written() -> bool:
            seen.append(link.generation)
            return await losable(link.call("SET", f"{{{mine}}}more", "2"), otherwise=None) == b"OK"

        await until(written)
        assert await link.call("GET", mine) == b"1"
        assert await replica.asked("GET", f"{{{mine}}}more") == b"2"
        await until(link.answers)
        seen.append(link.generation)
        assert seen == sorted(seen), "a number that was there before is never said again"
        assert seen[-1] > seen[0]


async def test_a_cluster_that_lacks_a_slot_is_unavailable_and_that_is_no_defect(nodes: list[Server]) -> None:
    lost, there = key_in(16000), key_in(1)
    with capture_logs() as logs:
        async with linked(nodes[0]) as link:
            assert await link.call("SET", there, "1") == b"OK"
            try:

                async def down() -> bool:
                    for node in reversed(nodes):  # the owner first; who has it from an older word of the owner's, once more
                        with contextlib.suppress(ResponseError):  # it has no owner there already
                            await node.asked("CLUSTER", "DELSLOTS", 16000)
                    return await losable(link.call("GET", there), otherwise=None) is None

                await until(down)
                with pytest.raises(RedisUnavailable):
                    await link.call("GET", lost)
            finally:
                await nodes[2].asked("CLUSTER", "ADDSLOTS", 16000)

            async def back() -> bool:
                states = [await node.asked("CLUSTER", "INFO") for node in nodes]
                return await link.answers() and all(b"cluster_state:ok" in state for state in states)

            await until(back)
            assert await link.call("SET", lost, "1") == b"OK"
            assert await link.call("GET", there) == b"1"
    assert "redis refused a command" not in [line["event"] for line in logs]


async def test_a_cluster_that_nobody_told_us_of_ends_the_start_or_is_told_once(nodes: list[Server]) -> None:
    with pytest.raises(StartError, match="is a cluster: set REDIS__CLUSTER=true"):
        await open_link(settings_of(nodes[0]))
    with capture_logs() as logs:
        link = RedisLink(settings_of(nodes[0]))
        for _ in range(3):
            with pytest.raises(RedisUnavailable):
                await link.call("GET", "a")
        await link.close()
    assert [line["log_level"] for line in logs if line["event"] == "redis is unfit"] == ["error"]


async def test_a_server_that_is_no_cluster_is_refused_where_one_was_promised(redis_server: EmbeddedRedis) -> None:
    with pytest.raises(StartError, match="is not a cluster: unset REDIS__CLUSTER"):
        await open_link(settings_of(redis_server, cluster=True))


async def test_one_node_that_may_evict_is_enough_to_refuse_the_cluster(nodes: list[Server]) -> None:
    await nodes[2].asked("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
    try:
        with pytest.raises(StartError, match=f":{nodes[2].port} may drop .*allkeys-random"):
            await open_link(settings_of(nodes[0], cluster=True), must_keep=True)
        async with linked(nodes[0], allow_eviction=True) as link:
            assert await link.answers()
            assert link.weak
    finally:
        await nodes[2].asked("CONFIG", "SET", "maxmemory-policy", "noeviction")
    async with linked(nodes[0]) as link:
        assert await link.answers()
        assert not link.weak


async def test_with_no_node_reachable_it_starts_and_is_away(servers_folder: Path) -> None:
    server = Server(servers_folder / f"gone-{uuid.uuid4().hex[:8]}")
    async with running(server):
        settings = settings_of(server, cluster=True)
    link = await open_link(settings, must_keep=True)
    assert not await link.answers()
    for _ in range(10):
        with pytest.raises(RedisUnavailable):
            await link.call("GET", "a")
    assert not link.weak
    await link.close()
