"""Usage events in Postgres. They do not touch the head of the history, but where a cap is crossed: metadata and usage do not
wait for each other."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from datetime import date, datetime
from typing import NamedTuple

import asyncpg
from asyncpg import Record

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.prices import FREE, Price
from twofold_chassis.refusals import Overloaded
from twofold_chassis.requests import Attempt
from twofold_registry import months
from twofold_registry.months import month_of
from twofold_registry.prices import COST_MAX, Money
from twofold_registry.resources import Page
from twofold_registry.revisions import Revision
from twofold_registry.store import caps, rows
from twofold_registry.store.changes import Change, Changes
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_past_workspace
from twofold_registry.usage import (
    Cell,
    Event,
    EventReused,
    Grouped,
    Operation,
    TooExpensive,
    Totals,
    UsageQuery,
    Window,
    WindowQuery,
    WindowTooLarge,
    distinct,
)
from twofold_registry.workspaces import WorkspaceUnknown

_CELLS_MAX = 100_000
_OPERATIONS_MAX = 200_000
_PART = 500
_WINDOWS_AT_ONCE = 4
_WINDOW_WAIT_S = 2.0
_PARTITIONS_AHEAD = 3
_NOTHING = Totals(0, 0, 0, 0)

Batch = Mapping[str, tuple[Event, bytes]]


class _Locked(Exception):  # noqa: N818  (a state, not an error)
    """This batch is to be recorded with the workspace locked: it crosses a cap, or its month is closed meanwhile."""


class _Terms(NamedTuple):
    """What a recording needs to know beforehand."""

    current_month: date
    open_month: date | None
    prices: Mapping[str, Price]


class _Subject(NamedTuple):
    """Who used what; the first fields of an event behind its id."""

    user_id: str
    agent_id: str
    thread_id: str
    kind: str


class PostgresUsage:
    """The truth about what was used."""

    def __init__(self, pool: Pool, reads: Reads, changes: Changes, system: Pool) -> None:
        self._pool = pool
        self._reads = reads
        self._changes = changes
        self._system = system
        self._windows = asyncio.Semaphore(_WINDOWS_AT_ONCE)

    async def record(self, workspace_id: str, events: Sequence[Event]) -> list[bool]:
        batch = distinct(workspace_id, events)
        try:
            async with postgres.transaction(self._pool, (workspace_id,)) as connection:
                new = await _keep(connection, workspace_id, events, batch)
                if new and (await caps.standing(connection, workspace_id)).is_crossed:
                    raise _Locked
        except _Locked:
            # Nothing of it was kept. A change begins with the lock of the workspace; one that took it now, behind the sums,
            # could wait in a circle with another.
            new = await self._record_locked(workspace_id, events, batch)
        return _duplicates(events, new)

    async def _record_locked(self, workspace_id: str, events: Sequence[Event], batch: Batch) -> set[str]:
        """As long as the workspace is locked no month of it is closed, and nobody else crosses its caps."""
        new: set[str] = set()

        async def make(change: Change) -> bytes:
            await caps.require_past_locked(change, workspace_id)
            new.update(await _keep(change.connection, workspace_id, events, batch))
            await caps.settle(change, workspace_id)
            return b""

        await self._changes.once(Attempt(workspace_id, "RecordUsage", None, b""), workspace_id, make)
        return new

    async def totals(self, query: UsageQuery, least: Revision | None) -> Totals:
        found = await self._grouped(query, "", 1, least)
        return found[0].totals if found else _NOTHING

    async def grouped(self, query: UsageQuery, after: str, size: int, least: Revision | None) -> Page[Grouped]:
        return rows.page(await self._grouped(query, after, size + 1, least), size)

    async def _grouped(self, query: UsageQuery, after: str, size: int, least: Revision | None) -> list[Grouped]:
        statement, start, end = "query_events", query.start, query.end
        if query.is_of_whole_months:
            statement, start, end = "query_sums", month_of(query.start), month_of(query.end)  # type: ignore[assignment]
        values = (query.workspace_id, start, end, query.user_id, query.agent_id, query.kind, query.group.value, after, size)

        async def ask(connection: Connection) -> list[Record]:
            await require_past_workspace(connection, query.workspace_id)
            return await connection.fetch(STATEMENTS[statement], *values)

        with rows.sums_that_fit("end_time", "the sums of this span do not fit; ask for a shorter one"):
            found = await self._reads.read(query.workspace_id, ask, least)
        return [Grouped(row["place"], _totals(row)) for row in found]

    async def window(self, query: WindowQuery) -> AsyncGenerator[Window]:
        async with self._one_of_few_windows():
            cells, operations, read_at = await self._window(query)
            yield Window(cells[:_PART], (), read_at)
            for start in range(_PART, len(cells), _PART):
                yield Window(cells[start : start + _PART], (), read_at)
            for start in range(0, len(operations), _PART):
                yield Window((), operations[start : start + _PART], read_at)

    @contextlib.asynccontextmanager
    async def _one_of_few_windows(self) -> AsyncIterator[None]:
        """A window is kept in memory until it is told."""
        try:
            async with asyncio.timeout(_WINDOW_WAIT_S):
                await self._windows.acquire()
        except TimeoutError:
            raise Overloaded("too many windows are being read", retry_after_s=1.0) from None
        try:
            yield
        finally:
            self._windows.release()

    async def _window(self, query: WindowQuery) -> tuple[list[Cell], list[Operation], datetime]:
        limits = (_CELLS_MAX + 1, _OPERATIONS_MAX + 1)
        values = (query.workspace_id, query.start, query.cell, query.operations_from, *limits, query.by_user, query.by_agent)

        async def ask(connection: Connection) -> list[Record]:
            return await connection.fetch(STATEMENTS["read_window"], *values)

        with rows.sums_that_fit("cell", "the sums of a cell do not fit; ask for shorter ones"):
            found = await self._reads.read(query.workspace_id, ask)
        if not found or found[-1]["part"] != 2:
            raise WorkspaceUnknown(query.workspace_id)
        cells = [_cell(row) for row in found if row["part"] == 0]
        operations = [Operation(row["operation_id"], row["at"]) for row in found if row["part"] == 1]
        if len(cells) > _CELLS_MAX or len(operations) > _OPERATIONS_MAX:
            raise WindowTooLarge(
                f"more than {_CELLS_MAX} cells or {_OPERATIONS_MAX} operations; ask for longer cells or a shorter time"
            )
        return cells, operations, found[-1]["at"]

    async def add_partitions(self, _: int = 0) -> int:
        """Prepares the months that come; returns how many were new. For an hourly sweep; nothing fails if none has run."""
        async with postgres.transaction(self._system) as connection:
            return int(await connection.fetchval(STATEMENTS["add_usage_partitions"], _PARTITIONS_AHEAD))


async def _keep(connection: Connection, workspace_id: str, events: Sequence[Event], batch: Batch) -> set[str]:
    """Keeps those that are new and returns their ids; of one that another call is recording now, waits for the end.

    Raises _Locked if a month was closed since its terms were read: then nothing may be committed.
    """
    agent_ids = {event.agent_id for event, _ in batch.values()}
    terms = await _terms(connection, workspace_id, agent_ids)
    begin = months.begin_of(terms.current_month)
    if any(event.at < begin for event, _ in batch.values()):
        await connection.execute(STATEMENTS["keep_months_open"], workspace_id)
        terms = await _terms(connection, workspace_id, agent_ids)
    ordered = sorted(batch.values(), key=lambda kept: kept[0].event_id)
    try:
        with rows.sums_that_fit("events", "the sums of their month would not fit"):
            row = await connection.fetchrow(STATEMENTS["record_usage"], workspace_id, *_columns(ordered, terms))
    except asyncpg.CheckViolationError as error:
        if error.constraint_name != "amounts_are_bounded":
            raise
        raise _too_expensive(events, terms) from None
    assert row is not None
    if not row["all_open"]:
        raise _Locked
    if row["taken"] is None:
        return set(batch)
    await _compare(connection, workspace_id, {event_id: batch[event_id][1] for event_id in row["taken"]})
    return set(batch).difference(row["taken"])


async def _terms(connection: Connection, workspace_id: str, agent_ids: set[str]) -> _Terms:
    found = await connection.fetch(STATEMENTS["usage_terms"], workspace_id, list(agent_ids))
    if not found:
        raise WorkspaceUnknown(workspace_id)
    prices = {row["agent_id"]: _price(row) for row in found if row["agent_id"] is not None}
    return _Terms(
        found[0]["current_month"], found[0]["open_month"], {agent_id: prices.get(agent_id, FREE) for agent_id in agent_ids}
    )


def _columns(ordered: Sequence[tuple[Event, bytes]], terms: _Terms) -> tuple[object, ...]:
    events = [event for event, _ in ordered]
    places: dict[_Subject, int] = {}
    subjects = [places.setdefault(_Subject(*event[1:5]), len(places) + 1) for event in events]
    prices = [terms.prices[subject.agent_id] for subject in places]
    return (
        [event.event_id for event in events],
        subjects,
        [event.at for event in events],
        [event.messages for event in events],
        [event.input_tokens for event in events],
        [event.output_tokens for event in events],
        [body for _, body in ordered],
        # One that was recorded before need not be affordable any more, so whether it is too much only the table decides.
        [min(event.cost_micros(prices[place - 1]), COST_MAX + 1) for event, place in zip(events, subjects, strict=True)],
        [subject.user_id for subject in places],
        [subject.agent_id for subject in places],
        [subject.thread_id for subject in places],
        [subject.kind for subject in places],
        [price.currency for price in prices],
        [price.per_message_micros for price in prices],
        [price.per_1000_input_tokens_micros for price in prices],
        [price.per_1000_output_tokens_micros for price in prices],
        terms.open_month,
    )


def _too_expensive(events: Sequence[Event], terms: _Terms) -> TooExpensive:
    costs = [event.cost_micros(terms.prices[event.agent_id]) for event in events]
    index = next(index for index, cost in enumerate(costs) if cost > COST_MAX)
    return TooExpensive(index, costs[index])


async def _compare(connection: Connection, workspace_id: str, bodies: dict[str, bytes]) -> None:
    for row in await connection.fetch(STATEMENTS["recorded_bodies"], workspace_id, list(bodies)):
        if row["body_hash"] != bodies[row["event_id"]]:
            raise EventReused(workspace_id, row["event_id"])


def _duplicates(events: Sequence[Event], new: set[str]) -> list[bool]:
    """Of an id that stands twice in the batch, the first may be new, the second is not."""
    fresh = set(new)
    duplicates = []
    for event in events:
        duplicates.append(event.event_id not in fresh)
        fresh.discard(event.event_id)
    return duplicates


def _totals(row: Record) -> Totals:
    costs = [Money(*told) for told in zip(row["currencies"], row["costs"], strict=True) if told[1]]
    return Totals(row["events"], row["messages"], row["input_tokens"], row["output_tokens"], costs)


def _cell(row: Record) -> Cell:
    return Cell(
        start=row["at"],
        user_id=row["user_id"],
        agent_id=row["agent_id"],
        events=row["events"],
        messages=row["messages"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        cost=Money(row["currency"], row["cost_micros"]),
    )


def _price(row: Record) -> Price:
    return Price(row["price_message_micros"], row["price_input_micros"], row["price_output_micros"], row["currency"])
