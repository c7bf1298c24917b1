"""The changes in Postgres, for those who follow them; on the connections of the system role."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from operator import itemgetter

import asyncpg
import structlog
from asyncpg import Record

from twofold_chassis import postgres
from twofold_chassis.alongside import alongside
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.refusals import Overloaded, StoreUnavailable
from twofold_chassis.settings import DatabaseSettings
from twofold_registry.history import Item, ItemKind
from twofold_registry.routers import REGISTERED_S, Acked, Progress, Registered, RouterKey
from twofold_registry.store import rows
from twofold_registry.store.reads import renew_epoch
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.watching import LOOK_BYTES_MAX, LOOK_ROWS_MAX, Changed, Look, Opened, Place, Thing
from twofold_registry.wire.agents import agent_bytes
from twofold_registry.wire.permissions import grant_bytes
from twofold_registry.wire.users import user_bytes
from twofold_registry.wire.workspaces import workspace_bytes

CHANNEL = "twofold_registry"
_STATES_AT_ONCE = 2
_STATE_ROWS = 200
_TURN_S_MAX = 10.0
_PART_BYTES_MAX = 1024 * 1024
_STATE_S_MAX = 300.0
_REGISTERED = timedelta(seconds=REGISTERED_S)
_AGAIN_S = 1.0


class PostgresFeed:
    """What has changed."""

    def __init__(self, system: Pool) -> None:
        self._system = system
        self._states = asyncio.Semaphore(_STATES_AT_ONCE)

    async def open_at(self, place: Place | None) -> Opened:
        row = await self._row("feed_open", -1 if place is None else place.revision)
        if place is not None and place.epoch == row["epoch"]:
            tag = row["head_tag"] if place.revision == row["head"] else row["tag_there"]
            if tag == place.tag:
                return Opened(place, resumed=True)
            if tag is not None or place.revision > row["head"]:  # the past was rewritten
                async with postgres.connection(self._system) as connection:
                    await connection.execute(STATEMENTS["end_epoch"], place.epoch)
                row = await self._row("feed_open", -1)
        return Opened(Place(row["epoch"], row["old"], row["old_tag"]), resumed=False)

    async def look(self, after: int) -> Look:
        found = await self._rows("feed_look", after, LOOK_ROWS_MAX, LOOK_BYTES_MAX)
        first = found[0]
        changes = [] if first["revision"] is None else [_changed(group) for group in _by_revision(found)]
        routers = {RouterKey(router, incarnation): left for router, incarnation, left in json.loads(first["routers"])}
        head = Place(first["epoch"], first["head"], first["head_tag"])
        is_all = not changes or changes[-1].revision == head.revision
        return Look(head, first["compacted"], first["at"], routers, changes, is_all)

    @contextlib.asynccontextmanager
    async def state(self) -> AsyncIterator[tuple[Place, AsyncIterator[Sequence[Thing]]]]:
        try:
            async with asyncio.timeout(_TURN_S_MAX):
                await self._states.acquire()
        except TimeoutError:
            raise Overloaded("too many are reading everything", retry_after_s=5.0) from None
        async with asyncio.timeout(_STATE_S_MAX) as limit:
            try:
                async with postgres.snapshot(self._system) as connection:
                    row = await connection.fetchrow(STATEMENTS["feed_place"])
                    assert row is not None
                    if row["epoch"] is None:  # it ended after the stream was opened
                        raise StoreUnavailable("Postgres is another one since a moment ago", retry_after_s=0.1)
                    yield Place(row["epoch"], row["revision"], row["tag"]), _state(connection)
            except TimeoutError:
                if limit.expired():
                    raise Overloaded("everything was not taken within five minutes", retry_after_s=5.0) from None
                raise
            finally:
                self._states.release()

    async def _row(self, statement: str, *values: object) -> Record:
        return (await self._rows(statement, *values))[0]

    async def _rows(self, statement: str, *values: object) -> list[Record]:
        """Rows with the epoch, which is renewed before if this is another Postgres."""
        for _ in range(2):
            async with postgres.connection(self._system) as connection:
                found = await connection.fetch(STATEMENTS[statement], *values)
            if found[0]["epoch"] is not None:
                return found
            await renew_epoch(self._system)
        raise StoreUnavailable("Postgres is another one at every look", retry_after_s=1.0)


def _by_revision(found: Sequence[Record]) -> list[list[Record]]:
    return [list(group) for _, group in itertools.groupby(found, itemgetter("revision"))]


def _changed(group: Sequence[Record]) -> Changed:
    first = group[0]
    things = [
        Thing(row["workspace_id"], Item(ItemKind(row["kind"]), row["user_id"], row["agent_id"], row["after"]))
        for row in group
    ]
    return Changed(first["revision"], first["tag"], first["changed_at"], first["wait"], things)


async def _state(connection: Connection) -> AsyncIterator[Sequence[Thing]]:
    for statement, key, thing in _STATE:
        after = ("",) * len(key)
        while found := await connection.fetch(STATEMENTS[statement], *after, _STATE_ROWS):
            for part in _parts([thing(row) for row in found]):
                yield part
            after = tuple(found[-1][name] for name in key)


def _parts(things: Sequence[Thing]) -> Iterator[Sequence[Thing]]:
    """The same in parts that a client takes as one message, but for a single thing that is larger."""
    part: list[Thing] = []
    room = _PART_BYTES_MAX
    for thing in things:
        size = thing.size
        if part and size > room:
            yield part
            part, room = [], _PART_BYTES_MAX
        part.append(thing)
        room -= size
    yield part


def _workspace_there(row: Record) -> Thing:
    return Thing(row["workspace_id"], Item(ItemKind.WORKSPACE, after=workspace_bytes(rows.workspace(row))))


def _user_there(row: Record) -> Thing:
    return Thing(row["workspace_id"], Item(ItemKind.USER, row["user_id"], after=user_bytes(rows.user(row))))


def _agent_there(row: Record) -> Thing:
    return Thing(row["workspace_id"], Item(ItemKind.AGENT, "", row["agent_id"], agent_bytes(rows.agent(row))))


def _grant_there(row: Record) -> Thing:
    grant = grant_bytes(rows.listed_grant(row))
    return Thing(row["workspace_id"], Item(ItemKind.PERMISSION, row["user_id"], row["agent_id"], grant))


_STATE: tuple[tuple[str, tuple[str, ...], Callable[[Record], Thing]], ...] = (
    ("state_of_workspaces", ("workspace_id",), _workspace_there),
    ("state_of_users", ("workspace_id", "user_id"), _user_there),
    ("state_of_agents", ("workspace_id", "agent_id"), _agent_there),
    ("state_of_grants", ("workspace_id", "user_id", "agent_id"), _grant_there),
)


class PostgresRegistrations:
    """Who is registered as a router."""

    def __init__(self, system: Pool) -> None:
        self._system = system

    async def register(self, router: RouterKey) -> None:
        await self._run("register_router", *router, _REGISTERED)

    async def renew(self, routers: Sequence[RouterKey]) -> None:
        await self._run("renew_routers", *_columns(routers), _REGISTERED)

    async def leave(self, router: RouterKey) -> None:
        await self._run("forget_router", *router)

    async def ack(self, acks: Sequence[Acked]) -> None:
        told = sorted(acks)  # so that two processes never wait for each other in a circle
        keys = _columns([ack.router for ack in told])
        await self._run("ack_changes", *keys, [ack.epoch for ack in told], [ack.revision for ack in told])

    async def progress(self) -> Progress:
        async with postgres.connection(self._system) as connection:
            found = await connection.fetch(STATEMENTS["routers_progress"])
        return Progress(found[0]["epoch_age_s"], [_registered(row) for row in found if row["router_id"] is not None])

    async def _run(self, statement: str, *values: object) -> None:
        async with postgres.connection(self._system) as connection:
            await connection.execute(STATEMENTS[statement], *values)


def _columns(routers: Sequence[RouterKey]) -> tuple[list[str], list[str]]:
    return [router.router_id for router in routers], [router.incarnation for router in routers]


def _registered(row: Record) -> Registered:
    key = RouterKey(row["router_id"], row["incarnation"])
    return Registered(Acked(key, row["acked_epoch"], row["acked_revision"]), row["expires_at"])


@contextlib.asynccontextmanager
async def listening(settings: DatabaseSettings, wake: Callable[[], None]) -> AsyncIterator[None]:
    """Calls `wake` when any process has committed a change, if there is a connection without a pooler for that.

    Only a hint: whoever does not hear it hears of the change at the next look.
    """
    if settings.direct_url is None:
        yield
        return
    async with alongside(_listen(settings.direct_url.get_secret_value(), settings.connect_timeout_s, wake)):
        yield


async def _listen(url: str, timeout_s: float, wake: Callable[[], None]) -> None:
    logger = structlog.get_logger("twofold.watching")
    failed = False
    while True:
        try:
            connection = await asyncpg.connect(url, timeout=timeout_s, statement_cache_size=0)
            try:
                ended = asyncio.Event()
                connection.add_termination_listener(lambda _, ended=ended: ended.set())
                await connection.add_listener(CHANNEL, lambda *_: wake())
                failed = False
                wake()  # what was committed meanwhile was not heard
                await ended.wait()
            finally:
                connection.terminate()
        except Exception as error:  # noqa: BLE001  (whatever it was, it is tried again: the driver has errors of its own)
            if not failed:
                logger.warning("changes of other processes are not heard at once", error=postgres.told(error))
            failed = True
        await asyncio.sleep(_AGAIN_S)
