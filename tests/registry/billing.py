"""What tests of usage and billing call the registry with, and the look that compares all sums at one moment."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

import asyncpg

from tests.registry.stubs import Connection, Registry
from twofold.registry.v1 import agent_pb2, billing_pb2, usage_pb2
from twofold_chassis import fields
from twofold_registry import months

CLAIM = "INSERT INTO registry.usage_keys VALUES ($1, $2, decode(repeat('00', 32), 'hex'))"
"""Takes an event id; whoever records an event of that id waits until the transaction ends."""

_SUMS = """sum(messages) AS messages, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens"""
# Every way to the same number, by month and currency, out of one snapshot: the events, the sums that are kept of them, the
# totals, and the invoices, the latter two with the adjustments. All but the first two columns count differences.
SUMS = f"""
    WITH adjusted AS (
        SELECT month, currency, sum(amount_micros) AS amount FROM registry.usage_adjustments
        WHERE workspace_id = $1 GROUP BY 1, 2
    ), events AS (
        SELECT month, currency, count(*) AS events, {_SUMS}, sum(cost_micros) AS cost
        FROM registry.usage_events WHERE workspace_id = $1 GROUP BY 1, 2
    ), sums AS (
        SELECT month, currency, sum(events) AS events, {_SUMS}, sum(cost_micros) AS cost
        FROM registry.usage_sums WHERE workspace_id = $1 GROUP BY 1, 2
    ), due AS (
        SELECT month, currency, coalesce(events, 0) AS events, coalesce(messages, 0) AS messages,
            coalesce(input_tokens, 0) AS input_tokens, coalesce(output_tokens, 0) AS output_tokens,
            coalesce(cost, 0) + coalesce(amount, 0) AS cost
        FROM sums FULL JOIN adjusted USING (month, currency)
    ), totals AS (
        SELECT month, currency, events::numeric, messages::numeric, input_tokens::numeric, output_tokens::numeric,
            cost_micros::numeric AS cost
        FROM registry.usage_totals WHERE workspace_id = $1 AND currency <> ''
    ), gates AS (
        SELECT month, events::numeric, messages::numeric, input_tokens::numeric, output_tokens::numeric, closed
        FROM registry.usage_totals WHERE workspace_id = $1 AND currency = ''
    ), lines AS (
        SELECT month, currency, sum(events) AS events, {_SUMS}, sum(amount_micros) AS cost
        FROM registry.invoice_lines WHERE workspace_id = $1 GROUP BY 1, 2
    ), invoices AS (
        SELECT i.month, p.currency, p.amount
        FROM registry.invoices i, unnest(i.currencies, i.amounts_micros) AS p (currency, amount) WHERE i.workspace_id = $1
    ), closed AS (
        SELECT * FROM due WHERE month <= (SELECT max(month) FROM registry.invoices WHERE workspace_id = $1)
    )
    SELECT
        (SELECT count(*) FROM registry.usage_keys WHERE workspace_id = $1) AS keys,
        (SELECT count(*) FROM registry.usage_events WHERE workspace_id = $1) AS events,
        (SELECT count(*) FROM (SELECT event_id FROM registry.usage_keys WHERE workspace_id = $1
            EXCEPT ALL SELECT event_id FROM registry.usage_events WHERE workspace_id = $1) AS d) AS keys_without_events,
        (SELECT count(*) FROM (TABLE events EXCEPT TABLE sums) AS d) AS events_not_summed,
        (SELECT count(*) FROM (TABLE sums EXCEPT TABLE events) AS d) AS sums_of_nothing,
        (SELECT count(*) FROM (TABLE due EXCEPT TABLE totals) AS d) AS sums_not_in_totals,
        (SELECT count(*) FROM (TABLE totals EXCEPT TABLE due) AS d) AS totals_of_nothing,
        (SELECT count(*) FROM (
            SELECT month, events, messages, input_tokens, output_tokens FROM gates WHERE events > 0
            EXCEPT SELECT month, sum(events), {_SUMS} FROM sums GROUP BY month
        ) AS d) AS gates_that_differ,
        (SELECT count(*) FROM (TABLE closed EXCEPT TABLE lines) AS d) AS months_not_as_invoiced,
        (SELECT count(*) FROM (TABLE lines EXCEPT TABLE closed) AS d) AS lines_of_nothing,
        (SELECT count(*) FROM (SELECT month, currency, cost FROM lines EXCEPT TABLE invoices) AS d) AS lines_not_in_invoices,
        (SELECT count(*) FROM (TABLE invoices EXCEPT SELECT month, currency, cost FROM lines) AS d) AS invoices_of_nothing
"""


async def agreed(owner: Connection, workspace_id: str) -> int:
    """How many events there are; all sums over them agree, at one moment."""
    row: asyncpg.Record | None = await owner.fetchrow(SUMS, workspace_id)
    assert row is not None
    told = dict(row)
    count, keys = told.pop("events"), told.pop("keys")
    assert keys == count
    assert set(told.values()) == {0}, told
    return int(count)


def this_month() -> date:
    return months.month_of(datetime.now(UTC))


def months_ago(count: int) -> date:
    month = this_month()
    for _ in range(count):
        month = months.month_of(months.begin_of(month) - timedelta(days=1))
    return month


def middle_of(month: date) -> datetime:
    """Some time in a month, which is past if the month has begun."""
    return min(months.begin_of(month) + timedelta(days=14), max(datetime.now(UTC), months.begin_of(month)))


def event(event_id: str, at: datetime | None = None, **values: object) -> usage_pb2.UsageEvent:
    time = fields.timestamp(datetime.now(UTC) if at is None else at)
    given = {"user_id": "ann", "agent_id": "helper", "event_time": time, "messages": 1, **values}
    return usage_pb2.UsageEvent(event_id=event_id, **given)  # type: ignore[arg-type]


class Books:
    """Calls about one workspace."""

    def __init__(self, api: Registry, workspace_id: str) -> None:
        self.api = api
        self.workspace_id = workspace_id

    async def make_agent(self, agent_id: str, **price: object) -> agent_pb2.Agent:
        return await self.api.make_agent(self.workspace_id, agent_id, price=agent_pb2.AgentPrice(**price))  # type: ignore[arg-type]

    async def record(self, *events: usage_pb2.UsageEvent) -> list[bool]:
        request = usage_pb2.RecordUsageRequest(workspace_id=self.workspace_id, events=events)
        return list((await self.api.usage.RecordUsage(request)).duplicates)

    async def bill(self, month: date | None = None, page_size: int = 500) -> billing_pb2.GetBillResponse:
        """All of it, page by page."""
        named = months.named(month) if month else ""
        request = billing_pb2.GetBillRequest(workspace_id=self.workspace_id, month=named, page_size=page_size)
        whole = answer = await self.api.billing.GetBill(request)
        while answer.next_page_token:
            request.page_token = answer.next_page_token
            answer = await self.api.billing.GetBill(request)
            whole.lines.extend(answer.lines)
        return whole

    async def close(self, month: date, request_id: str = "") -> billing_pb2.CloseMonthResponse:
        request = billing_pb2.CloseMonthRequest(
            workspace_id=self.workspace_id, month=months.named(month), request_id=request_id
        )
        return await self.api.billing.CloseMonth(request)

    async def invoice(self, month: date, page_size: int = 500) -> billing_pb2.GetInvoiceResponse:
        """All of it, page by page."""
        named = months.named(month)
        request = billing_pb2.GetInvoiceRequest(workspace_id=self.workspace_id, month=named, page_size=page_size)
        whole = answer = await self.api.billing.GetInvoice(request)
        while answer.next_page_token:
            request.page_token = answer.next_page_token
            answer = await self.api.billing.GetInvoice(request)
            whole.lines.extend(answer.lines)
        return whole

    async def adjust(
        self, micros: int, about: date | None = None, currency: str = "USD", request_id: str = ""
    ) -> billing_pb2.Adjustment:
        draft = billing_pb2.Adjustment(
            workspace_id=self.workspace_id,
            about_month=months.named(about) if about else "",
            amount=usage_pb2.Money(currency=currency, amount_micros=micros),
            reason="as agreed",
        )
        request = billing_pb2.CreateAdjustmentRequest(adjustment=draft, request_id=request_id)
        return (await self.api.billing.CreateAdjustment(request)).adjustment

    async def caps(self) -> billing_pb2.UsageCaps:
        return (await self.api.billing.GetCaps(billing_pb2.GetCapsRequest(workspace_id=self.workspace_id))).caps

    async def set_caps(self, **caps: object) -> billing_pb2.UsageCaps:
        wanted = billing_pb2.UsageCaps(workspace_id=self.workspace_id, **caps)  # type: ignore[arg-type]
        return (await self.api.billing.SetCaps(billing_pb2.SetCapsRequest(caps=wanted))).caps

    async def crossings(self) -> list[str]:
        """The actions on caps, in their order."""
        return [entry.action for entry in await self.api.trail(self.workspace_id, resource_kind="caps")]


def owed(amounts: object) -> Mapping[str, int]:
    """Amounts by currency."""
    return {money.currency: money.amount_micros for money in amounts}  # type: ignore[attr-defined]
