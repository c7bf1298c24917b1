"""Following all changes: each once, in order, without a gap; and what is told when that cannot be."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.databases import own_database, settings_of_database
from tests.registry.stubs import Connection, Registry, invalid, refused, settings_of
from tests.registry.test_routers import Silent as Unasked
from tests.waiting import somebody_waits, until, waiting_for
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, change_pb2, permission_pb2, user_pb2, workspace_pb2
from twofold_chassis import call, postgres
from twofold_chassis.refusals import Draining, StoreUnavailable
from twofold_chassis.settings import DatabaseSettings
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_registry.app import registry
from twofold_registry.change_service import ChangeService
from twofold_registry.history import Item, ItemKind
from twofold_registry.revisions import revision_of
from twofold_registry.routers import RouterKey, Routers
from twofold_registry.store.feed import PostgresFeed, PostgresRegistrations, listening
from twofold_registry.watching import (
    COMPACTED,
    EPOCH,
    SLOW,
    Changed,
    Checkpoint,
    Command,
    Leave,
    Look,
    Open,
    Opened,
    Ping,
    Place,
    Thing,
    Watching,
)

WAIT_S = 60
LEASE_MS = 400
ROUTER = RouterKey("r1", "a")


class Resynced(Exception):  # noqa: N818
    """The stream cannot go on."""


class Watcher:
    """Follows all changes as the contract says, and keeps a copy of everything."""

    def __init__(self, api: Registry, *, router: str = "", half_closed: bool = False) -> None:
        self._api = api
        self._router = router
        self._half_closed = half_closed
        self.place: change_pb2.WatchPlace | None = None
        self.copy: dict[tuple[str, ...], Any] = {}
        self.seen: list[int] = []
        self.started: change_pb2.WatchStart | None = None
        self.waits: list[int] = []

    @contextlib.asynccontextmanager
    async def watching(self, *, state: bool = True) -> AsyncIterator["Watcher"]:
        order = change_pb2.WatchOpen(state=state)
        if self.place is not None:
            order.place.CopyFrom(self.place)
        if self._router:
            order.router.CopyFrom(change_pb2.WatchRouter(router_id=self._router, incarnation="1"))
        self.call = self._api.changes.Watch()
        await self.call.write(change_pb2.WatchRequest(open=order))
        if self._half_closed:
            await self.call.done_writing()
        try:
            self._dropped = False
            await self.until("start")
            yield self
        finally:
            self.call.cancel()

    async def say(self, **command: Any) -> None:
        await self.call.write(change_pb2.WatchRequest(**command))

    async def until(self, kind: str) -> Any:
        """Applies what is told up to the first of this kind."""
        async with asyncio.timeout(WAIT_S):
            while True:
                told: Any = await self.call.read()
                assert told is not grpc.aio.EOF, await self.call.details()
                self._apply(told)
                met = told.WhichOneof("told")
                if met == kind:
                    return getattr(told, kind)
                if met == "resync":
                    raise Resynced

    async def caught_up(self, nonce: int = 7) -> change_pb2.WatchCheckpoint:
        """Everything that was committed before is applied."""
        await self.say(ping=change_pb2.WatchPing(nonce=nonce))
        while True:
            checkpoint: change_pb2.WatchCheckpoint = await self.until("checkpoint")
            if checkpoint.nonce == nonce:
                return checkpoint

    def _apply(self, told: change_pb2.WatchResponse) -> None:
        match told.WhichOneof("told"):
            case "state":
                if not self._dropped:
                    self._dropped = True
                    self.copy.clear()
                for item in told.state.items:
                    self._keep(item)
            case "start":
                self.started = told.start
                self.place = told.start.place
            case "change":
                assert self.place is not None
                change = told.change
                assert change.revision == self.place.revision + 1
                assert change.items
                self.seen.append(change.revision)
                self.place = change_pb2.WatchPlace(epoch=self.place.epoch, revision=change.revision, tag=change.tag)
                if change.wait:
                    self.waits.append(change.revision)
                for item in change.items:
                    self._keep(item)
            case "checkpoint":
                assert self.place is not None
                assert (told.checkpoint.epoch, told.checkpoint.revision) == (self.place.epoch, self.place.revision)

    def _keep(self, item: change_pb2.WatchItem) -> None:
        kind = item.WhichOneof("resource")
        if item.kind == change_pb2.WATCH_ITEM_KIND_PLAN:
            return
        family = {
            change_pb2.WATCH_ITEM_KIND_WORKSPACE: "workspace",
            change_pb2.WATCH_ITEM_KIND_USER: "user",
            change_pb2.WATCH_ITEM_KIND_AGENT: "agent",
            change_pb2.WATCH_ITEM_KIND_ROUTE: "agent",
            change_pb2.WATCH_ITEM_KIND_PERMISSION: "grant",
        }[item.kind]
        key = (family, item.workspace_id, item.user_id, item.agent_id)
        if kind is None:
            self.copy.pop(key, None)
        else:
            self.copy[key] = getattr(item, kind)

    def of(self, workspace_id: str) -> dict[tuple[str, ...], Any]:
        """What the copy says is in a workspace; a deletion hides all within, and who has a copy applies that rule."""
        if ("workspace", workspace_id, "", "") not in self.copy:
            return {}
        found = {key: value for key, value in self.copy.items() if key[1] == workspace_id}
        return {
            key: value
            for key, value in found.items()
            if key[0] != "grant"
            or (("user", workspace_id, key[2], "") in found and ("agent", workspace_id, "", key[3]) in found)
        }


async def truth(api: Registry, workspace_id: str) -> dict[tuple[str, ...], Any]:
    """What the registry itself says is in a workspace."""
    try:
        workspace = (
            await api.workspaces.GetWorkspace(workspace_pb2.GetWorkspaceRequest(workspace_id=workspace_id))
        ).workspace
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
        return {}
    found: dict[tuple[str, ...], Any] = {("workspace", workspace_id, "", ""): workspace}
    one_page: dict[str, Any] = {"workspace_id": workspace_id, "page_size": 500}
    for user in (await api.users.ListUsers(user_pb2.ListUsersRequest(**one_page))).users:
        found["user", workspace_id, user.user_id, ""] = user
    for agent in (await api.agents.ListAgents(agent_pb2.ListAgentsRequest(**one_page))).agents:
        found["agent", workspace_id, "", agent.agent_id] = agent
    for grant in (await api.permissions.ListGrants(permission_pb2.ListGrantsRequest(**one_page))).grants:
        found["grant", workspace_id, grant.user_id, grant.agent_id] = grant
    return found


async def furnish(api: Registry, workspace_id: str) -> None:
    await api.make_workspace(workspace_id)
    for user in ("ann", "ben"):
        await api.make_user(workspace_id, user)
    for agent in ("helper", "other"):
        await api.make_agent(workspace_id, agent)
    await api.grant(workspace_id, "ann", "helper")


async def revoke(api: Registry, workspace_id: str, user: str, agent: str, **values: Any) -> permission_pb2.RevokeResponse:
    return await api.permissions.Revoke(
        permission_pb2.RevokeRequest(workspace_id=workspace_id, user_id=user, agent_id=agent, **values)
    )


def number(token: bytes) -> int:
    revision = revision_of(token, "token")
    assert revision is not None
    return revision.number


async def test_who_begins_with_the_state_has_everything_and_then_every_change(api: Registry, workspace_id: str) -> None:
    await furnish(api, workspace_id)
    async with Watcher(api).watching() as watcher:
        assert watcher.of(workspace_id) == await truth(api, workspace_id)
        await revoke(api, workspace_id, "ann", "helper")
        await api.make_user(workspace_id, "cleo")
        await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=workspace_id, user_id="ben"))
        await watcher.caught_up()
        assert watcher.of(workspace_id) == await truth(api, workspace_id)
        assert {key[2] for key in watcher.of(workspace_id) if key[0] == "user"} == {"ann", "cleo"}


async def test_c15_what_a_deletion_hid_is_in_every_copy_again_when_it_is_restored(api: Registry, workspace_id: str) -> None:
    await furnish(api, workspace_id)
    one, other = f"{workspace_id}-1", f"{workspace_id}-2"
    for hidden in (one, other):
        await furnish(api, hidden)
    await api.users.DeleteUser(user_pb2.DeleteUserRequest(workspace_id=one, user_id="ann"))
    await api.workspaces.DeleteWorkspace(workspace_pb2.DeleteWorkspaceRequest(workspace_id=other))
    async with Watcher(api).watching() as watcher:  # a copy that has never seen them
        assert watcher.of(one) == await truth(api, one)
        assert watcher.of(other) == {}
        await api.users.UndeleteUser(user_pb2.UndeleteUserRequest(workspace_id=one, user_id="ann"))
        await api.workspaces.UndeleteWorkspace(workspace_pb2.UndeleteWorkspaceRequest(workspace_id=other))
        await watcher.caught_up()
        for restored in (one, other):
            assert watcher.of(restored) == await truth(api, restored)
            assert ("grant", restored, "ann", "helper") in watcher.of(restored)


async def test_a_ping_is_answered_with_what_was_committed_before_it(api: Registry, workspace_id: str) -> None:
    await api.make_workspace(workspace_id)
    async with Watcher(api).watching(state=False) as watcher:
        for index in range(20):
            answer = await api.users.CreateUser(
                user_pb2.CreateUserRequest(
                    user=user_pb2.User(workspace_id=workspace_id, user_id=f"u{index}", email=f"u{index}@acme.test")
                )
            )
            checkpoint = await watcher.caught_up(nonce=index + 1)
            assert checkpoint.revision >= number(answer.revision_token)
            assert ("user", workspace_id, f"u{index}", "") in watcher.copy


async def test_who_only_listens_hears_changes_and_that_nothing_happens(api: Registry, workspace_id: str) -> None:
    async with Watcher(api, half_closed=True).watching(state=False) as watcher:
        assert (await watcher.until("checkpoint")).nonce == 0
        await api.make_workspace(workspace_id)
        while ("workspace", workspace_id, "", "") not in watcher.copy:
            await watcher.until("change")
        await watcher.until("checkpoint")
        await watcher.until("checkpoint")


async def test_the_state_comes_in_messages_that_a_client_takes(api: Registry, workspace_id: str) -> None:
    await api.make_workspace(workspace_id)
    large = agent_pb2.AgentSettings(instructions="x" * 65536)
    for index in range(40):
        await api.make_agent(workspace_id, f"a{index}", settings=large)
    call = api.changes.Watch()
    await call.write(change_pb2.WatchRequest(open=change_pb2.WatchOpen(state=True, until_caught_up=True)))
    sizes = [told.ByteSize() async for told in call if told.HasField("state")]
    assert max(sizes) <= 1024 * 1024 + 100
    assert sum(sizes) > 40 * 65536


async def test_a_copy_is_made_once_with_a_stream_that_ends(api: Registry, workspace_id: str) -> None:
    await furnish(api, workspace_id)
    call = api.changes.Watch()
    await call.write(change_pb2.WatchRequest(open=change_pb2.WatchOpen(state=True, until_caught_up=True)))
    await call.done_writing()
    told = [one.WhichOneof("told") async for one in call]
    assert set(told[:-2]) == {"state"}
    assert told[-2:] == ["start", "checkpoint"]


async def test_a_watch_goes_on_where_it_stood(api: Registry, workspace_id: str) -> None:
    await api.make_workspace(workspace_id)
    watcher = Watcher(api)
    async with watcher.watching():
        await watcher.caught_up()
    await api.make_user(workspace_id, "ann")
    await api.make_user(workspace_id, "ben")
    async with watcher.watching():
        assert watcher.started is not None
        assert watcher.started.resumed
        await watcher.caught_up()
        assert {key[2] for key in watcher.of(workspace_id) if key[0] == "user"} == {"ann", "ben"}
    assert watcher.seen == sorted(set(watcher.seen))


async def test_a_place_of_a_past_that_was_rewritten_begins_a_new_epoch(api: Registry, workspace_id: str) -> None:
    await api.make_workspace(workspace_id)
    watcher = Watcher(api)
    for wrong in ({"tag": 1}, {"revision": 2**40}):
        async with watcher.watching():
            await watcher.caught_up()
        assert watcher.place is not None
        epoch = watcher.place.epoch
        watcher.place.MergeFrom(change_pb2.WatchPlace(**wrong))
        async with watcher.watching():
            assert watcher.started is not None
            assert not watcher.started.resumed
            assert watcher.started.place.epoch > epoch
            await watcher.caught_up()
            assert watcher.of(workspace_id) == await truth(api, workspace_id)


async def test_who_watches_while_the_epoch_ends_is_told_to_begin_anew(api: Registry, owner: Connection) -> None:
    async with Watcher(api).watching() as watcher:
        await watcher.caught_up()
        await owner.execute("UPDATE registry.registry_head SET epoch = epoch + 1")
        assert (await watcher.until("resync")).reason == change_pb2.WATCH_RESYNC_REASON_EPOCH
        assert await watcher.call.read() is grpc.aio.EOF
        assert await watcher.call.code() == grpc.StatusCode.OK


@pytest.fixture
async def alone(postgres_server: EmbeddedPostgres) -> AsyncIterator["Alone"]:
    """A registry with a database of its own, as its owner sees it; with a short lease."""
    async with contextlib.AsyncExitStack() as stack:
        database = settings_of_database(await stack.enter_async_context(own_database(postgres_server, "alone")))
        running = await stack.enter_async_context(registry(settings_of(database, lease_ms=LEASE_MS)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{running.port}"))
        connection = await asyncpg.connect(database.owner_url.get_secret_value())
        stack.push_async_callback(connection.close)
        yield Registry(channel), connection, database


Alone = tuple[Registry, Connection, DatabaseSettings]
COMPACT = """
    WITH gone AS (
        DELETE FROM registry.changes WHERE revision < (SELECT revision FROM registry.registry_head) RETURNING revision
    )
    UPDATE registry.registry_head SET compacted = coalesce((SELECT max(revision) FROM gone), compacted)
"""


async def test_a_place_that_was_compacted_away_begins_anew_in_the_same_epoch(alone: Alone, workspace_id: str) -> None:
    api, owner, _ = alone
    watcher = Watcher(api)
    await api.make_workspace(workspace_id)
    async with watcher.watching():
        await watcher.caught_up()
    for user in ("ann", "ben", "cleo"):
        await api.make_user(workspace_id, user)
    await owner.execute(COMPACT)
    assert watcher.place is not None
    epoch = watcher.place.epoch
    async with watcher.watching():
        assert watcher.started is not None
        assert not watcher.started.resumed
        assert watcher.started.place.epoch == epoch
        await watcher.caught_up()
        assert watcher.of(workspace_id) == await truth(api, workspace_id)


async def test_a_router_begins_with_the_changes_that_are_kept_and_a_missing_past_is_said(
    alone: Alone, workspace_id: str
) -> None:
    api, owner, _ = alone
    await furnish(api, workspace_id)
    async with Watcher(api, router="r1").watching(state=False) as watcher:
        await watcher.caught_up()
        assert watcher.seen == list(range(1, 7))
    await owner.execute(COMPACT)
    async with Watcher(api, router="r1").watching(state=False) as watcher:
        assert watcher.started is not None
        assert watcher.started.place.revision == 5
        await watcher.caught_up()
        assert watcher.seen == [6]


async def routers(api: Registry) -> list[change_pb2.RegisteredRouter]:
    return list((await api.changes.ListRouters(change_pb2.ListRoutersRequest())).routers)


async def test_a_router_is_registered_before_it_is_told_anything_and_until_it_leaves(alone: Alone) -> None:
    api, _, _ = alone
    async with Watcher(api, router="r1").watching(state=False) as watcher:
        assert [router.router_id for router in await routers(api)] == ["r1"]
        checkpoint = await watcher.caught_up()
        assert 0 < checkpoint.registered_ms <= 60_000
        assert checkpoint.routers == 1
    assert [router.router_id for router in await routers(api)] == ["r1"]  # a stream that is lost is no end of it
    async with Watcher(api, router="r1").watching(state=False) as watcher:
        await watcher.say(leave=change_pb2.WatchLeave())
        await watcher.caught_up()
        assert await routers(api) == []


async def test_a_registration_is_renewed_at_half_time_and_its_loss_ends_the_stream(alone: Alone) -> None:
    api, owner, _ = alone
    async with Watcher(api, router="r1").watching(state=False) as watcher:
        await watcher.caught_up()
        await owner.execute("UPDATE registry.watchers SET expires_at = now() + interval '20 seconds'")
        await watcher.caught_up(8)
        assert (await watcher.caught_up(9)).registered_ms > 30_000
        await owner.execute("DELETE FROM registry.watchers")
        await watcher.say(ping=change_pb2.WatchPing(nonce=10))
        assert (await watcher.until("resync")).reason == change_pb2.WATCH_RESYNC_REASON_UNREGISTERED


async def test_bad_commands_are_refused_by_field(api: Registry) -> None:
    async def answers(*requests: change_pb2.WatchRequest) -> None:
        call = api.changes.Watch()
        for request in requests:
            await call.write(request)
        await call.done_writing()
        async for _ in call:
            pass

    def opening(**values: Any) -> change_pb2.WatchRequest:
        return change_pb2.WatchRequest(open=change_pb2.WatchOpen(**values))

    def named(**values: str) -> change_pb2.WatchRequest:
        return opening(router=change_pb2.WatchRouter(**values))

    def at(**values: int) -> change_pb2.WatchRequest:
        return opening(place=change_pb2.WatchPlace(**values))

    def acked(**values: int) -> change_pb2.WatchRequest:
        return change_pb2.WatchRequest(ack=change_pb2.WatchAck(**values))

    ping = change_pb2.WatchRequest(ping=change_pb2.WatchPing())
    for field, requests in {
        "open": [[ping], [opening(), opening()], []],
        "command": [[opening(), change_pb2.WatchRequest()]],
        "ping.nonce": [[opening(), ping]],
        "ack": [[opening(), acked(epoch=1, revision=1)]],
        "leave": [[opening(), change_pb2.WatchRequest(leave=change_pb2.WatchLeave())]],
        "ack.epoch": [[named(router_id="bad-commands", incarnation="1"), acked(revision=1)]],
        "ack.revision": [[named(router_id="bad-commands", incarnation="1"), acked(epoch=1, revision=-1)]],
        "open.place.epoch": [[at(revision=1)]],
        "open.place.revision": [[at(epoch=1, revision=-1)]],
        "open.router.router_id": [[named(incarnation="1")]],
        "open.router.incarnation": [[named(router_id="r")]],
    }.items():
        for told in requests:
            with invalid(field):
                await answers(*told)

    empty = change_pb2.WatchRouter(router_id="of-an-empty-registry", incarnation="1")
    await answers(opening(router=empty, until_caught_up=True), acked(epoch=1, revision=0))


async def test_as_many_watch_at_a_process_as_may(database_settings: DatabaseSettings) -> None:
    async with (
        registry(settings_of(database_settings, watchers_max=1)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        api = Registry(channel)
        async with Watcher(api).watching(state=False):
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.REASON_TOO_MANY):
                call = api.changes.Watch()
                await call.write(change_pb2.WatchRequest(open=change_pb2.WatchOpen()))
                async for _ in call:
                    pass


async def test_who_never_says_where_to_begin_does_not_hold_up_the_end_of_a_server() -> None:
    asked = asyncio.Event()

    async def nothing() -> AsyncIterator[change_pb2.WatchRequest]:
        asked.set()
        await asyncio.Event().wait()
        yield change_pb2.WatchRequest()

    routers = Routers(Unasked(), lease_s=1.0)
    service = ChangeService(Watching(MovedFeed(Place(1, 1, 1)), routers, watchers_max=1), routers)
    drain = call.Drain()

    async def served() -> None:
        call.enter(call.Call(call.Identity("ann"), "request-1", deadline=float("inf"), drain=drain))
        async for _ in service.Watch(nothing(), None):  # type: ignore[arg-type]
            pass

    task = asyncio.create_task(served())
    await asked.wait()
    drain.begin()
    async with asyncio.timeout(20):
        with pytest.raises(Draining):
            await task


async def test_changes_of_another_process_are_heard_at_once(
    alone: Alone, workspace_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a ping, by Postgres' own word: nobody looks by itself."""
    monkeypatch.setattr("twofold_registry.watching._LOOK_EACH_S", 3600.0)
    api, _, database = alone
    async with (
        registry(settings_of(database)) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
        Watcher(Registry(channel), half_closed=True).watching(state=False) as watcher,
    ):
        await api.make_workspace(workspace_id)
        for index in range(5):
            await api.make_user(workspace_id, f"u{index}")
            while ("user", workspace_id, f"u{index}", "") not in watcher.copy:
                await watcher.until("change")


async def fed(database: DatabaseSettings, stack: contextlib.AsyncExitStack) -> PostgresFeed:
    pool = await postgres.open_pool(database.system, name="test")
    stack.push_async_callback(postgres.close_pool, pool)
    return PostgresFeed(pool)


async def nobody_speaks() -> AsyncIterator[Command]:
    await asyncio.Event().wait()
    yield Leave()


async def test_a_watcher_that_takes_nothing_is_told_so_and_cut_and_the_others_are_not(
    alone: Alone, workspace_id: str
) -> None:
    api, _, database = alone
    async with contextlib.AsyncExitStack() as stack:
        feed = await fed(database, stack)
        pool = await postgres.open_pool(database.system, name="test")
        stack.push_async_callback(postgres.close_pool, pool)
        routers = Routers(PostgresRegistrations(pool), lease_s=1.0)
        watching = Watching(feed, routers, watchers_max=2, buffer_bytes_max=1)
        order = Open(None, None, wants_state=False)
        slow = await stack.enter_async_context(watching.watch(order, nobody_speaks()))
        told = slow.told()
        stack.push_async_callback(told.aclose)
        while not isinstance(await anext(told), Checkpoint):
            pass

        quick = (await stack.enter_async_context(watching.watch(order, nobody_speaks()))).told()
        stack.push_async_callback(quick.aclose)
        await api.make_workspace(workspace_id)
        for index in range(3):
            await api.make_user(workspace_id, f"u{index}")
            watching.wake()
            while not (isinstance(one := await anext(quick), Changed) and one.things[0].item.user_id == f"u{index}"):
                pass
        assert await anext(told) is SLOW
        with pytest.raises(StopAsyncIteration):
            await anext(told)


class HeldFeed:
    """Nothing ever changes, and looking takes until it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.go = asyncio.Semaphore(0)

    async def open_at(self, place: Place | None) -> Opened:
        return Opened(Place(1, 1, 1), resumed=False)

    async def look(self, after: int) -> Look:
        self.begun.release()
        await self.go.acquire()
        return Look(Place(1, 1, 1), 0, datetime.now(UTC), {}, [], is_all=True)

    def state(self) -> Any: ...


async def test_a_ping_is_never_answered_from_a_look_that_had_begun_before_it_came() -> None:
    feed, said = HeldFeed(), asyncio.Queue[Command]()

    async def commands() -> AsyncIterator[Command]:
        while True:
            yield await said.get()
            said.task_done()  # asked for the next: this one is heard

    watching = Watching(feed, Routers(Unasked(), lease_s=1.0), watchers_max=1)
    async with watching.watch(Open(None, None, wants_state=False), commands()) as watch:
        told = watch.told()
        feed.go.release()  # for catching up
        assert isinstance(await anext(told), Opened)
        following = asyncio.create_task(anext(told))
        for _ in range(2):
            await feed.begun.acquire()
        said.put_nowait(Ping(7))  # while the first look for all is under way
        await said.join()
        feed.go.release()
        first = await following
        assert isinstance(first, Checkpoint)
        assert first.nonce == 0
        feed.go.release()
        second = await anext(told)
        assert isinstance(second, Checkpoint)
        assert second.nonce == 7
        await told.aclose()


class MovedFeed(HeldFeed):
    """Each look sees what the test says next; where it has said nothing, the last again."""

    def __init__(self, *heads: Place) -> None:
        super().__init__()
        self.heads = list(heads)
        self.asked: list[int] = []

    async def look(self, after: int) -> Look:
        self.asked.append(after)
        await asyncio.sleep(0)
        head = self.heads.pop(0) if len(self.heads) > 1 else self.heads[0]
        changes = [
            Changed(number, number, datetime.now(UTC), wait=False, things=[Thing("w", Item(ItemKind.WORKSPACE))])
            for number in range(after + 1, head.revision + 1)
        ]
        return Look(head, 0, datetime.now(UTC), {ROUTER: 1}, changes, is_all=True)


async def test_a_stream_of_an_epoch_that_ended_while_it_caught_up_does_not_go_on_in_the_next() -> None:
    feed = MovedFeed(Place(1, 1, 1))
    watching = Watching(feed, Routers(Unasked(), lease_s=1.0), watchers_max=2)
    order = Open(None, None, wants_state=False)
    async with (
        watching.watch(order, nobody_speaks()) as other,
        watching.watch(order, nobody_speaks()) as late,
    ):
        others = other.told()
        while not isinstance(await anext(others), Checkpoint):
            pass
        feed.heads = [Place(1, 2, 2)]
        told = late.told()
        assert isinstance(await anext(told), Opened)
        assert isinstance(await anext(told), Changed)  # it is slow to take this
        feed.heads = [Place(2, 2, 5)]
        watching.wake()
        while (one := await anext(others)) is not EPOCH:
            assert isinstance(one, Changed | Checkpoint)
        watching.wake()
        async with asyncio.timeout(WAIT_S):
            assert await anext(told) is EPOCH
        await told.aclose()
        await others.aclose()


async def test_who_pauses_holds_on_to_nothing_that_is_not_kept_for_all() -> None:
    feed = MovedFeed(Place(1, 1, 1))
    watching = Watching(feed, Routers(Unasked(), lease_s=1.0), watchers_max=1, buffer_bytes_max=100_000)
    async with watching.watch(Open(None, None, wants_state=False), nobody_speaks()) as watch:
        told = watch.told()
        while not isinstance(await anext(told), Checkpoint):
            pass
        feed.heads = [Place(1, 401, 401)]  # 80,000 bytes
        watching.wake()
        while not isinstance(await anext(told), Changed):
            pass
        feed.heads = [Place(1, 1601, 1601)]
        watching.wake()
        while feed.asked[-1] < 1601:  # noqa: ASYNC110  (the feed is a stand-in)
            await asyncio.sleep(0)
        more = [one async for one in told]
        assert more[-1] is SLOW
        assert len(more) < 50


async def test_what_was_read_is_not_read_again_because_no_router_could_be_renewed() -> None:
    class Stuck(Unasked):
        async def renew(self, routers: Sequence[RouterKey]) -> None:
            raise StoreUnavailable("away", retry_after_s=1.0)

    feed = MovedFeed(Place(1, 1, 1), Place(1, 2, 2))
    watching = Watching(feed, Routers(Stuck(), lease_s=1.0), watchers_max=1)
    async with watching.watch(Open(ROUTER, None, wants_state=False), nobody_speaks()) as watch:
        told = watch.told()
        while not isinstance(await anext(told), Changed):
            pass
        while len(feed.asked) < 4:
            watching.wake()
            await asyncio.sleep(0)
        await told.aclose()
    assert feed.asked == [1, 1, 2, 2]


async def test_a_defect_in_what_a_watcher_says_ends_its_stream() -> None:
    async def broken() -> AsyncIterator[Command]:
        raise LookupError("a defect")
        yield Leave()

    watching = Watching(MovedFeed(Place(1, 1, 1)), Routers(Unasked(), lease_s=1.0), watchers_max=1)
    async with (
        asyncio.timeout(WAIT_S),
        watching.watch(Open(None, None, wants_state=False), broken()) as watch,
    ):
        with pytest.raises(LookupError):
            async for _ in watch.told():
                pass


class RegisteredFeed(HeldFeed):
    """Nothing ever changes, and a router is registered for as long as the test says."""

    routers: Mapping[RouterKey, int] = {ROUTER: 60_000}

    async def look(self, after: int) -> Look:
        return Look(Place(1, 1, 1), 0, datetime.now(UTC), self.routers, [], is_all=True)


async def test_a_router_that_is_leaving_is_not_told_that_it_is_not_registered() -> None:
    feed, leaving = RegisteredFeed(), asyncio.Event()

    class Forgetful(Unasked):
        async def leave(self, router: RouterKey) -> None:
            feed.routers = {}
            leaving.set()
            await asyncio.Event().wait()  # it has left; that is heard of late

    async def leaves() -> AsyncIterator[Command]:
        yield Leave()

    watching = Watching(feed, Routers(Forgetful(), lease_s=1.0), watchers_max=1)
    async with asyncio.timeout(WAIT_S), watching.watch(Open(ROUTER, None, wants_state=False), leaves()) as watch:
        told = watch.told()
        await leaving.wait()
        assert isinstance(await anext(told), Opened)
        assert isinstance(await anext(told), Checkpoint)
        await told.aclose()


async def test_a_router_whose_stream_is_cancelled_twice_is_renewed_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twofold_registry.watching._LOOK_EACH_S", 0.01)
    renewed, held = 0, asyncio.Event()

    class Counted(Unasked):
        async def renew(self, routers: Sequence[RouterKey]) -> None:
            nonlocal renewed
            renewed += 1

    async def stubborn() -> AsyncIterator[Command]:
        try:
            await asyncio.Event().wait()
        finally:
            held.set()
            await asyncio.Event().wait()
        yield Leave()

    feed = RegisteredFeed()
    feed.routers = {ROUTER: 1}
    watching = Watching(feed, Routers(Counted(), lease_s=1.0), watchers_max=2)

    async def watched() -> None:
        async with watching.watch(Open(ROUTER, None, wants_state=False), stubborn()) as watch:
            async for _ in watch.told():
                pass

    task = asyncio.create_task(watched())
    await until(lambda: renewed > 0)
    task.cancel()
    await held.wait()
    task.cancel()
    await asyncio.wait([task])
    async with watching.watch(Open(None, None, wants_state=False), nobody_speaks()) as watch:
        before, told = renewed, watch.told()
        for _ in range(3):
            while not isinstance(await anext(told), Checkpoint):
                pass
            watching.wake()
        await told.aclose()
    assert renewed == before


class CompactedFeed(HeldFeed):
    """The changes behind a place are gone by the look of that number."""

    def __init__(self, when: int) -> None:
        super().__init__()
        self._looks_left = when

    async def look(self, after: int) -> Look:
        self._looks_left -= 1
        if self._looks_left > 0:
            return Look(Place(1, 1, 1), 0, datetime.now(UTC), {}, [], is_all=True)
        fifth = Changed(5, 5, datetime.now(UTC), wait=False, things=[Thing("w", Item(ItemKind.WORKSPACE))])
        return Look(Place(1, 5, 5), 4, datetime.now(UTC), {}, [fifth], is_all=True)


@pytest.mark.parametrize("when", [1, 2, 3])
async def test_changes_behind_a_gap_are_not_told(when: int) -> None:
    watching = Watching(CompactedFeed(when), Routers(Unasked(), lease_s=1.0), watchers_max=1)
    async with watching.watch(Open(None, None, wants_state=False), nobody_speaks()) as watch:
        told = [type(one) if isinstance(one, Opened | Checkpoint) else one async for one in watch.told()]
    assert told == [Opened, *[Checkpoint] * (when - 2), COMPACTED]


async def test_a_look_takes_whole_revisions_however_many_things_one_changed(
    alone: Alone, workspace_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, owner, database = alone
    await furnish(api, workspace_id)
    # The third revision is made to have changed five things.
    await owner.execute(
        "INSERT INTO registry.changes SELECT revision, n, tag, at, kind, workspace_id, user_id, agent_id, after, wait"
        " FROM registry.changes, generate_series(2, 5) n WHERE revision = 3"
    )
    monkeypatch.setattr("twofold_registry.store.feed.LOOK_ROWS_MAX", 3)
    async with contextlib.AsyncExitStack() as stack:
        feed = await fed(database, stack)
        look = await feed.look(0)
        assert [(change.revision, len(change.things)) for change in look.changes] == [(1, 1), (2, 1), (3, 5)]
        assert not look.is_all
        look = await feed.look(3)
        assert [change.revision for change in look.changes] == [4, 5, 6]
        assert look.is_all


async def test_a_look_ends_before_it_gets_too_large_but_never_before_its_first_revision(
    alone: Alone, workspace_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, owner, database = alone
    await furnish(api, workspace_id)
    sizes = await owner.fetch("SELECT octet_length(after) AS size FROM registry.changes ORDER BY revision LIMIT 3")
    async with contextlib.AsyncExitStack() as stack:
        feed = await fed(database, stack)
        for room, expected in ((1, 1), (sum(row["size"] for row in sizes), 3), (10**9, 6)):
            monkeypatch.setattr("twofold_registry.store.feed.LOOK_BYTES_MAX", room)
            look = await feed.look(0)
            assert [change.revision for change in look.changes] == list(range(1, expected + 1))
            assert look.is_all is (expected == 6)


async def test_listening_goes_on_whatever_the_driver_said(
    alone: Alone, workspace_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, _, database = alone
    connect, heard = asyncpg.connect, asyncio.Event()
    refusals = iter([asyncpg.InternalClientError("another operation is in progress"), LookupError("a defect")])

    async def connecting(*arguments: Any, **options: Any) -> Any:
        for refusal in refusals:
            raise refusal
        return await connect(*arguments, **options)

    monkeypatch.setattr("twofold_registry.store.feed.asyncpg.connect", connecting)
    monkeypatch.setattr("twofold_registry.store.feed._AGAIN_S", 0.01)
    async with listening(database, heard.set), asyncio.timeout(WAIT_S):
        await heard.wait()  # it listens
        heard.clear()
        await api.make_workspace(workspace_id)
        await heard.wait()


async def test_c15_a_restart_of_postgres_ends_the_epoch_and_the_copy_is_whole_again(
    own_postgres: EmbeddedPostgres, workspace_id: str
) -> None:
    async with (
        registry(settings_of(settings_of_database(own_postgres))) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        api = Registry(channel)
        await furnish(api, workspace_id)
        watcher = Watcher(api)
        async with watcher.watching():
            await watcher.caught_up()
            assert watcher.place is not None
            epoch = watcher.place.epoch
            await own_postgres.kill()
            await own_postgres.start()
            assert (await watcher.until("resync")).reason == change_pb2.WATCH_RESYNC_REASON_EPOCH
        async with watcher.watching():
            assert watcher.place.epoch > epoch
            await watcher.caught_up()
            assert watcher.of(workspace_id) == await truth(api, workspace_id)


async def test_c15_whoever_is_cut_off_paused_or_compacted_away_ends_with_what_the_registry_says(
    alone: Alone, workspace_id: str
) -> None:
    """Random writes by two writers, while six watchers come and go; changes are compacted away under them."""
    api, owner, database = alone
    workspaces = [f"{workspace_id}-{index}" for index in range(3)]
    for workspace in workspaces:
        await furnish(api, workspace)
    done = asyncio.Event()
    compacted = begun_anew = 0

    async def write(writer: int, connection: Connection) -> None:
        nonlocal compacted
        chance = random.Random(f"writer {writer}")
        for step in range(60):
            workspace = chance.choice(workspaces)
            with unknown_or_not():
                match chance.randrange(6):
                    case 0:
                        await api.make_user(workspace, f"u{writer}-{step}")
                    case 1:
                        await api.grant(workspace, chance.choice(("ann", "ben")), chance.choice(("helper", "other")))
                    case 2:
                        await revoke(api, workspace, chance.choice(("ann", "ben")), chance.choice(("helper", "other")))
                    case 3:
                        agent = agent_pb2.Agent(workspace_id=workspace, agent_id="other", display_name=f"{writer}-{step}")
                        await api.agents.UpdateAgent(
                            agent_pb2.UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=["display_name"]))
                        )
                    case 4:
                        await api.users.DeleteUser(
                            user_pb2.DeleteUserRequest(workspace_id=workspace, user_id=f"u{writer}-{step - 1}")
                        )
                    case _:
                        await connection.execute(COMPACT)
                        compacted = await connection.fetchval("SELECT compacted FROM registry.registry_head")

    async def follow(follower: int) -> Watcher:
        nonlocal begun_anew
        chance = random.Random(f"follower {follower}")
        watcher = Watcher(api)
        while not done.is_set():
            place = watcher.place
            with contextlib.suppress(Resynced):
                async with watcher.watching():
                    assert watcher.started is not None
                    begun_anew += place is not None and not watcher.started.resumed
                    for _ in range(chance.randrange(1, 12)):
                        await watcher.until("checkpoint" if chance.random() < 0.2 else "change")
                        if done.is_set():
                            break
                        if chance.random() < 0.3:
                            await asyncio.sleep(0)
            if chance.random() < 0.5:  # it stays away until its place is gone
                await until(lambda: done.is_set() or (watcher.place is not None and watcher.place.revision < compacted))
        async with watcher.watching():
            await watcher.caught_up()
        return watcher

    async def until_told(task: "asyncio.Task[Watcher]") -> Watcher:
        while not task.done():  # who waits for a change is given one
            await api.make_user(workspaces[0], f"late-{uuid.uuid4().hex}")
            await asyncio.wait([task], timeout=0.2)
        return task.result()

    followers = [asyncio.create_task(follow(number)) for number in range(6)]
    other = await asyncpg.connect(database.owner_url.get_secret_value())
    await asyncio.gather(write(0, owner), write(1, other))
    await other.close()
    done.set()
    watchers = [await until_told(task) for task in followers]
    for watcher in watchers:
        async with watcher.watching():
            await watcher.caught_up()
        for workspace in workspaces:
            assert watcher.of(workspace) == await truth(api, workspace)
    assert begun_anew


@contextlib.contextmanager
def unknown_or_not() -> Iterator[None]:
    """What is deleted may have been deleted before, or never been there."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise


async def test_c15_who_commits_late_is_told_first_if_its_revision_came_first(alone: Alone, workspace_id: str) -> None:
    """A serial number as revision would let the second be told before the first, of which nobody would ever hear."""
    api, owner, _ = alone
    first, second = f"{workspace_id}-1", f"{workspace_id}-2"
    for workspace in (first, second):
        await api.make_workspace(workspace)
    await api.make_user(first, "ann")
    async with Watcher(api).watching() as watcher:
        await watcher.caught_up()
        begun = owner.transaction()
        await begun.start()
        # The first change has its revision when it meets this row, and waits.
        await owner.execute("UPDATE registry.users SET email = 'taken@acme.test' WHERE user_id = 'ann'")
        slow = asyncio.create_task(api.make_user(first, "ben", email="taken@acme.test"))
        await somebody_waits(owner)
        quick = asyncio.create_task(api.make_user(second, "cleo"))

        async def it_waits_or_is_done() -> bool:
            return quick.done() or await waiting_for(owner) == 2

        await until(it_waits_or_is_done)
        assert not quick.done()
        await begun.rollback()
        await asyncio.gather(slow, quick)
        await watcher.caught_up()
        assert watcher.of(first) == await truth(api, first)
        assert watcher.of(second) == await truth(api, second)
