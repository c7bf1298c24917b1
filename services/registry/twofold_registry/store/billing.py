"""Bills in Postgres: what was used is summed where it is recorded; here months are closed, and credits given."""

from collections.abc import Sequence
from datetime import date

from asyncpg import Record

from twofold_chassis import call, fields
from twofold_chassis.postgres import Connection
from twofold_chassis.prices import Price
from twofold_chassis.requests import Attempt
from twofold_registry import months
from twofold_registry.billing import (
    Adjustment,
    Bill,
    BillKey,
    Closing,
    Draft,
    Invoice,
    InvoiceUnknown,
    Line,
    LinePlace,
    about_of,
    check_order,
)
from twofold_registry.history import Item, ItemKind
from twofold_registry.prices import Money
from twofold_registry.resources import Answer, Page
from twofold_registry.revisions import Revision
from twofold_registry.store import caps, rows
from twofold_registry.store.changes import Change, Changes, Deed
from twofold_registry.store.reads import Reads
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.tenants import require_past_workspace
from twofold_registry.wire.billing import adjustment_json, invoice_json
from twofold_registry.workspaces import WorkspaceUnknown

_FRONT = (-1, "", "", "", 0, 0, 0, months.FIRST)


class PostgresBilling:
    """The truth about what is owed."""

    def __init__(self, reads: Reads, changes: Changes) -> None:
        self._reads = reads
        self._changes = changes

    async def bill(
        self, workspace_id: str, month: date | None, behind: LinePlace | None, size: int, least: Revision | None
    ) -> Bill:
        async def ask(connection: Connection) -> Bill:
            head = await connection.fetch(STATEMENTS["bill_head"], workspace_id, month)
            if not head:
                raise WorkspaceUnknown(workspace_id)
            values = (workspace_id, head[0]["month"], *_place_values(behind), size + 1)
            found = await connection.fetch(STATEMENTS["bill_page"], *values)
            # Of the statement that reads the lines, as what is recorded between the two is in one of them only.
            totals = _totals(found[0]) if found else [_money(row) for row in head if row["currency"] is not None]
            return Bill(head[0]["month"], head[0]["closed"], totals, rows.page([_line(row) for row in found], size))

        return await self._reads.read(workspace_id, ask, least)

    async def close(self, key: BillKey, attempt: Attempt, answer: Answer[Closing]) -> bytes:
        async def make(change: Change) -> bytes:
            await caps.require_past_locked(change, key.workspace_id)
            earlier = await change.connection.fetchrow(STATEMENTS["get_invoice"], key.workspace_id, key.month)
            if earlier is not None:
                return answer(Closing(_invoice(key.workspace_id, earlier), closed=False), await change.head())
            await change.write("await_months", key.workspace_id)
            await _check_order(change, key)
            return await _closed(change, key, answer)

        return await self._changes.once(attempt, key.workspace_id, make)

    async def invoice(
        self, key: BillKey, behind: LinePlace | None, size: int, least: Revision | None
    ) -> tuple[Invoice, Page[Line]]:
        async def ask(connection: Connection) -> tuple[Invoice, Page[Line]]:
            await require_past_workspace(connection, key.workspace_id)
            row = await connection.fetchrow(STATEMENTS["get_invoice"], key.workspace_id, key.month)
            if row is None:
                raise InvoiceUnknown(key.month)
            values = (key.workspace_id, key.month, *_place_values(behind), size + 1)
            found = await connection.fetch(STATEMENTS["invoice_page"], *values)
            return _invoice(key.workspace_id, row), rows.page([_line(line) for line in found], size)

        return await self._reads.read(key.workspace_id, ask, least)

    async def invoices(self, workspace_id: str, before: date, size: int, least: Revision | None) -> Page[Invoice]:
        async def ask(connection: Connection) -> list[Record]:
            await require_past_workspace(connection, workspace_id)
            return await connection.fetch(STATEMENTS["list_invoices"], workspace_id, before, size + 1)

        found = await self._reads.report(workspace_id, ask, least)
        return rows.page([_invoice(workspace_id, row) for row in found], size)

    async def adjust(self, draft: Draft, attempt: Attempt, answer: Answer[Adjustment]) -> bytes:
        async def make(change: Change) -> bytes:
            await caps.require_past_locked(change, draft.workspace_id)
            now = await caps.months_of(change, draft.workspace_id)
            about = about_of(draft, now.current)
            month = months.booked(about, now.open)
            await caps.lock_month(change, draft.workspace_id, month)
            amount = (draft.amount.currency, draft.amount.amount_micros)
            with rows.sums_that_fit("adjustment.amount.amount_micros", "the sum of its month would not fit"):
                await change.write("add_to_totals", draft.workspace_id, month, *amount)
            standing = await caps.standing(change.connection, draft.workspace_id)
            stamp = await change.take_revision()
            adjustment = Adjustment(
                workspace_id=draft.workspace_id,
                adjustment_id=fields.new_id(),
                about=about,
                month=month,
                amount=draft.amount,
                reason=draft.reason,
                created_by=call.current().identity.actor,
                created_at=stamp.at,
            )
            await change.write("insert_adjustment", *_values(adjustment), stamp.revision.number)
            told = adjustment_json(adjustment)
            deeds = [Deed("adjustment.create", adjustment.adjustment_id, "", told, [Item(ItemKind.PLAN)])]
            if standing.is_crossed:
                deeds.append(await caps.told(change, standing))
            await change.record(stamp, draft.workspace_id, deeds)
            return answer(adjustment, stamp.revision)

        return await self._changes.once(attempt, draft.workspace_id, make)


async def _check_order(change: Change, key: BillKey) -> None:
    row = await change.connection.fetchrow(STATEMENTS["months_of_a_closing"], key.workspace_id, key.month)
    assert row is not None
    check_order(key.month, current=row["current_month"], closed=row["closed_month"], waiting=row["waiting_month"])


async def _closed(change: Change, key: BillKey, answer: Answer[Closing]) -> bytes:
    # Whoever was past the gate of the month has committed now, and is in its sums; everybody else finds it closed, and
    # begins anew in the month that is open.
    await caps.lock_month(change, key.workspace_id, key.month)
    await change.write("freeze_lines", key.workspace_id, key.month)
    sums = await change.connection.fetch(STATEMENTS["frozen_sums"], key.workspace_id, key.month)
    await change.write("close_totals", key.workspace_id, key.month)
    stamp = await change.take_revision()
    lines = sum(row["lines"] for row in sums)
    totals = [Money(row["currency"], row["amount_micros"]) for row in sums]
    invoice = Invoice(key, totals, lines, stamp.at, call.current().identity.actor)
    await change.write(
        "insert_invoice",
        key.workspace_id,
        key.month,
        [money.currency for money in totals],
        [money.amount_micros for money in totals],
        lines,
        invoice.closed_at,
        invoice.closed_by,
        stamp.revision.number,
    )
    deed = Deed("invoice.create", months.named(key.month), "", invoice_json(invoice), [Item(ItemKind.PLAN)])
    await change.record(stamp, key.workspace_id, [deed])
    return answer(Closing(invoice, closed=True), stamp.revision)


def _values(adjustment: Adjustment) -> tuple[object, ...]:
    return (
        adjustment.workspace_id,
        adjustment.adjustment_id,
        adjustment.about,
        adjustment.month,
        adjustment.amount.currency,
        adjustment.amount.amount_micros,
        adjustment.reason,
        adjustment.created_by,
        adjustment.created_at,
    )


def _place_values(place: LinePlace | None) -> tuple[object, ...]:
    if place is None:
        return _FRONT
    price = place.price
    return (
        place.part,
        place.subject_id,
        place.kind,
        price.currency,
        price.per_message_micros,
        price.per_1000_input_tokens_micros,
        price.per_1000_output_tokens_micros,
        place.origin_month,
    )


def _line(row: Record) -> Line:
    price = Price(row["price_message_micros"], row["price_input_micros"], row["price_output_micros"], row["currency"])
    return Line(
        place=LinePlace(row["part"], row["subject_id"], row["kind"], price, row["origin_month"]),
        events=row["events"],
        messages=row["messages"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        amount_micros=row["amount_micros"],
        reason=row["reason"],
    )


def _money(row: Record) -> Money:
    return Money(row["currency"], row["cost_micros"])


def _totals(row: Record) -> Sequence[Money]:
    return list(map(Money, row["currencies"] or (), row["amounts_micros"] or ()))


def _invoice(workspace_id: str, row: Record) -> Invoice:
    key = BillKey(workspace_id, row["month"])
    return Invoice(key, _totals(row), row["line_count"], row["closed_at"], row["closed_by"])
