"""What is owed: prices that stand with the events, months that close for ever, credits, caps that are crossed once."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from functools import partial

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.registry.billing import CLAIM, Books, agreed, event, middle_of, months_ago, owed, this_month
from tests.registry.chains import exported
from tests.registry.stubs import Answered, Connection, Registry, insist, invalid, lost, refused, taken, unknown
from tests.waiting import somebody_waits
from twofold import audit
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, billing_pb2, usage_pb2, workspace_pb2
from twofold_chassis import fields, postgres
from twofold_chassis.prices import Price, cost_micros
from twofold_chassis.refusals import Busy
from twofold_chassis.requests import Requests
from twofold_chassis.settings import DatabaseSettings
from twofold_registry import months
from twofold_registry.caps import Cap, Caps, CapState, Told, Used
from twofold_registry.prices import COST_MAX
from twofold_registry.store.caps import PostgresCaps
from twofold_registry.store.changes import Changes
from twofold_registry.store.reads import Reads

LAST = months_ago(1)
BEFORE = months_ago(2)
MICROS = st.integers(0, 10**12)
PLAN_REVISIONS = "SELECT count(DISTINCT revision) FROM registry.changes WHERE workspace_id = $1 AND kind = 'plan'"


@pytest.fixture
def books(api: Registry, workspace: str) -> Books:
    return Books(api, workspace)


async def reprice(books: Books, agent_id: str, **price: object) -> None:
    agent = agent_pb2.Agent(workspace_id=books.workspace_id, agent_id=agent_id)
    agent.price.CopyFrom(agent_pb2.AgentPrice(**price))  # type: ignore[arg-type]
    request = agent_pb2.UpdateAgentRequest(agent=agent)
    request.update_mask.paths.append("price")
    await books.api.agents.UpdateAgent(request)


# Money.


@given(MICROS, MICROS, MICROS, st.integers(0, 10**9), st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_cost_is_the_exact_one_rounded_half_up(
    per_message: int, per_input: int, per_output: int, messages: int, read: int, written: int
) -> None:
    cost = cost_micros(Price(per_message, per_input, per_output), messages, read, written)
    exact = 1000 * messages * per_message + read * per_input + written * per_output
    assert -500 < 1000 * cost - exact <= 500


def test_half_a_micro_is_rounded_up() -> None:
    price = Price(0, 1, 0)
    assert [cost_micros(price, 0, tokens, 0) for tokens in (0, 499, 500, 1499, 1500)] == [0, 0, 1, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=30), st.randoms())
def test_sums_do_not_depend_on_how_events_are_grouped(events: list[tuple[int, int, int]], chance: object) -> None:
    price = Price(7, 333, 1999)
    costs = [cost_micros(price, *each) for each in events]
    groups: Counter[int] = Counter()
    for cost in costs:
        groups[chance.randrange(3)] += cost  # type: ignore[attr-defined]
    assert sum(groups.values()) == sum(costs)


@given(st.dates(min_value=months.FIRST, max_value=date(9998, 12, 31)))
def test_months_follow_each_other(day: date) -> None:
    month = months.month_of(datetime(day.year, day.month, day.day, 23, 59, 59, tzinfo=UTC))
    following = months.after(month)
    assert months.month_of(months.begin_of(following) - timedelta(microseconds=1)) == month < following
    assert months.is_begin(months.begin_of(month))


# Bills.


async def test_a_bill_has_a_line_for_each_agent_kind_and_price(books: Books, owner: Connection) -> None:
    await books.make_agent("helper", per_message_micros=2_000_000, per_1000_input_tokens_micros=3, currency="EUR")
    await books.record(event("a/0", input_tokens=1500), event("a/1", kind="tool", messages=0, input_tokens=500))
    await reprice(books, "helper", per_message_micros=5_000_000, currency="EUR")
    await books.record(event("b/0", user_id="bob"), event("b/1", messages=2), event("c/0", agent_id="free"))
    for page_size in (500, 1):
        bill = await books.bill(page_size=page_size)
        told = [
            (line.agent_id, line.kind, line.per_message_micros, line.events, line.amount.amount_micros)
            for line in bill.lines
        ]
        assert told == [
            ("free", "turn", 0, 1, 0),
            ("helper", "tool", 2_000_000, 1, 2),  # 1.5, rounded up
            ("helper", "turn", 2_000_000, 1, 2_000_005),  # 4.5
            ("helper", "turn", 5_000_000, 2, 15_000_000),
        ]
        assert owed(bill.totals) == {"EUR": 17_000_007, "USD": 0}
        assert (bill.month, bill.closed) == (months.named(this_month()), False)
    assert await agreed(owner, books.workspace_id) == 5


async def test_what_was_recorded_keeps_its_price_also_when_it_is_sent_again(books: Books) -> None:
    await books.make_agent("helper", per_message_micros=10)
    await books.record(event("a/0", middle_of(this_month())))
    await reprice(books, "helper", per_message_micros=10**12)
    assert await books.record(event("a/0", middle_of(this_month()))) == [True]
    assert owed((await books.bill()).totals) == {"USD": 10}


async def test_a_deleted_agent_costs_what_it_cost_last(books: Books) -> None:
    await books.make_agent("helper", per_message_micros=10)
    request = agent_pb2.DeleteAgentRequest(workspace_id=books.workspace_id, agent_id="helper")
    await books.api.agents.DeleteAgent(request)
    await books.record(event("a/0"))
    assert owed((await books.bill()).totals) == {"USD": 10}


async def test_a_cost_that_cannot_be_counted_is_refused_and_never_wrapped(books: Books, owner: Connection) -> None:
    await books.make_agent("helper", per_message_micros=10**12)
    with invalid("events[1]"):
        await books.record(event("a/0"), event("a/1", messages=1001))
    assert await books.record(event("a/0"), event("a/1", messages=1000)) == [False, False]
    # Once recorded, it stays a duplicate, whatever it would cost by now.
    await books.record(event("b/0", middle_of(this_month()), agent_id="other", messages=10**9))
    await books.make_agent("other", per_message_micros=10**12)
    assert await books.record(event("b/0", middle_of(this_month()), agent_id="other", messages=10**9)) == [True]
    assert await agreed(owner, books.workspace_id) == 3


async def test_sums_that_would_not_fit_refuse_the_batch(books: Books, owner: Connection) -> None:
    await books.record(event("a/0"))
    everything = "UPDATE registry.usage_sums SET messages = 9223372036854775807 WHERE workspace_id = $1"
    await owner.execute(everything, books.workspace_id)
    with invalid("events"):
        await books.record(event("a/1"), event("a/2", agent_id="other"))
    assert await owner.fetchval("SELECT count(*) FROM registry.usage_keys WHERE workspace_id = $1", books.workspace_id) == 1


async def test_a_bill_of_a_month_without_anything_is_empty(books: Books) -> None:
    assert await books.bill(LAST) == billing_pb2.GetBillResponse(month=months.named(LAST))


async def test_the_next_page_is_of_the_same_bill(books: Books) -> None:
    await books.record(event("a/0"), event("a/1", agent_id="other"))
    request = billing_pb2.GetBillRequest(workspace_id=books.workspace_id, page_size=1)
    token = (await books.api.billing.GetBill(request)).next_page_token
    for other in ({"month": months.named(LAST)}, {"workspace_id": "other"}):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_PAGE_TOKEN, "page_token"):
            given = {"workspace_id": books.workspace_id, "page_token": token, **other}
            await books.api.billing.GetBill(billing_pb2.GetBillRequest(**given))  # type: ignore[arg-type]


# Months that close.


async def test_a_closed_month_never_changes_and_what_comes_late_is_a_line_of_the_open_one(
    books: Books, owner: Connection
) -> None:
    await books.make_agent("helper", per_message_micros=100)
    await books.record(event("a/0", middle_of(LAST)), event("a/1", middle_of(LAST)))
    await books.adjust(-30, LAST)
    closed = await books.close(LAST)
    assert closed.closed
    assert owed(closed.invoice.totals) == {"USD": 170}
    before = await books.invoice(LAST)

    late = event("a/2", middle_of(LAST))
    assert await books.record(late, event("a/1", middle_of(LAST)), event("b/0")) == [False, True, False]
    assert await books.record(late) == [True]
    adjustment = await books.adjust(7, LAST)
    assert (adjustment.month, adjustment.about_month) == (months.named(this_month()), months.named(LAST))

    assert await books.invoice(LAST) == before
    bill = await books.bill()
    told = [(line.about_month, line.events, line.amount.amount_micros) for line in bill.lines]
    assert told == [(months.named(LAST), 1, 100), (months.named(this_month()), 1, 100), (months.named(LAST), 0, 7)]
    assert (await books.bill(LAST)).lines == before.lines
    assert (await books.bill(LAST)).closed
    assert await agreed(owner, books.workspace_id) == 4


async def test_an_invoices_lines_sum_to_its_totals_page_by_page(books: Books, owner: Connection) -> None:
    await books.make_agent("one", per_message_micros=3, per_1000_output_tokens_micros=999)
    await books.make_agent("two", per_1000_input_tokens_micros=77, currency="EUR")
    batch = [
        event(
            f"{number}/0",
            middle_of(LAST),
            agent_id=("one", "two")[number % 2],
            user_id=f"u{number % 3}",
            kind=f"k{number % 4}",
            input_tokens=number,
            output_tokens=number * 31,
        )
        for number in range(100)
    ]
    await books.record(*batch)
    await books.adjust(-1234, LAST, "EUR")
    await books.adjust(5, LAST, "CHF")
    invoice = (await books.close(LAST)).invoice
    whole = await books.invoice(LAST, page_size=2)
    sums: Counter[str] = Counter()
    for line in whole.lines:
        sums[line.amount.currency] += line.amount.amount_micros
    assert owed(invoice.totals) == dict(sums)
    assert invoice.line_count == len(whole.lines) == 6
    assert sum(line.events for line in whole.lines) == 100
    assert whole.invoice == invoice
    assert await agreed(owner, books.workspace_id) == 100


async def test_closing_is_one_change_however_often_it_is_asked_for(books: Books, owner: Connection) -> None:
    await books.record(event("a/0", middle_of(LAST)))
    first = await books.close(LAST, "r")
    assert await books.close(LAST, "r") == first
    again = await books.close(LAST)
    assert (again.closed, again.invoice) == (False, first.invoice)
    (entry,) = await books.api.trail(books.workspace_id, resource_kind="invoice")
    assert (entry.action, entry.resource_id) == ("invoice.create", months.named(LAST))
    assert await owner.fetchval(PLAN_REVISIONS, books.workspace_id) == 1
    with taken(Reason.REASON_REQUEST_REUSED):
        await books.close(BEFORE, "r")


async def test_months_are_closed_in_their_order_and_when_they_are_over(books: Books) -> None:
    out_of_order = (grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_MONTH_ORDER)
    for month in (this_month(), months.after(this_month())):
        with invalid("month"):
            await books.close(month)
    await books.record(event("a/0", middle_of(BEFORE)))
    with refused(*out_of_order):
        await books.close(LAST)
    await books.close(BEFORE)
    assert (await books.close(LAST)).invoice.line_count == 0  # nothing happened in it, and now nothing can
    with refused(*out_of_order):
        await books.close(months_ago(3))
    await books.record(event("a/1", middle_of(months_ago(3))))
    assert [line.about_month for line in (await books.bill()).lines] == [months.named(months_ago(3))]


async def test_invoices_are_listed_newest_first(books: Books) -> None:
    for count in (3, 2, 1):
        await books.close(months_ago(count))
    request = billing_pb2.ListInvoicesRequest(workspace_id=books.workspace_id, page_size=2)
    first = await books.api.billing.ListInvoices(request)
    request.page_token = first.next_page_token
    second = await books.api.billing.ListInvoices(request)
    told = [invoice.month for invoice in [*first.invoices, *second.invoices]]
    assert told == [months.named(months_ago(count)) for count in (1, 2, 3)]
    assert not second.next_page_token
    with unknown(Reason.REASON_INVOICE_UNKNOWN):
        await books.invoice(months_ago(4))


@pytest.mark.parametrize("past", [LAST, BEFORE], ids=["with usage", "without usage"])
async def test_who_records_while_a_month_is_closed_is_in_one_of_the_two_months(
    books: Books, owner: Connection, past: date
) -> None:
    """The recording is in the middle of its transaction when the closing begins."""
    await books.record(event("a/0", middle_of(LAST)))
    async with owner.transaction():
        # Whoever records an event of this user waits here, in the middle of its transaction.
        await owner.execute(CLAIM, books.workspace_id, "b/0")
        recording = asyncio.create_task(books.record(event("a/9", middle_of(past)), event("b/0", middle_of(past))))
        await somebody_waits(owner)
        closing = asyncio.create_task(books.close(LAST))
        # What comes after it is not in the way, and not held up.
        await books.record(event("c/0"))
        assert not recording.done()
        await owner.execute(
            "DELETE FROM registry.usage_keys WHERE workspace_id = $1 AND event_id = 'b/0'", books.workspace_id
        )
    assert await recording == [False, False]
    await asyncio.gather(closing, return_exceptions=True)
    if past == LAST:
        await books.close(LAST)
    else:
        await books.close(BEFORE)
        await books.close(LAST)
    assert await agreed(owner, books.workspace_id) == 4


async def test_a_month_that_ends_and_is_closed_in_the_middle_of_a_recording_does_not_take_it(
    books: Books, owner: Connection
) -> None:
    await books.record(event("a/0"))
    close = "UPDATE registry.usage_totals SET closed = true WHERE workspace_id = $1 AND month = $2"
    invoice = "INSERT INTO registry.invoices VALUES ($1, $2, '{USD}', '{0}', 1, now(), 'somebody', 1)"
    async with owner.transaction():
        await owner.execute(CLAIM, books.workspace_id, "b/0")
        recording = asyncio.create_task(books.record(event("b/0")))
        await somebody_waits(owner)
        await owner.execute(close, books.workspace_id, this_month())
        await owner.execute(invoice, books.workspace_id, this_month())
        await owner.execute(
            "DELETE FROM registry.usage_keys WHERE workspace_id = $1 AND event_id = 'b/0'", books.workspace_id
        )
    assert await recording == [False]
    assert [line.events for line in (await books.bill(this_month())).lines] == [1]
    (late,) = (await books.bill(months.after(this_month()))).lines
    assert (late.about_month, late.events) == (months.named(this_month()), 1)


@pytest.mark.parametrize("purged", [False, True], ids=["deleted", "purged"])
async def test_a_workspace_that_is_gone_still_owes_what_it_used(books: Books, owner: Connection, purged: bool) -> None:
    """A month can only be closed when it is over: else whoever deletes its workspace before would never be asked to pay."""
    await books.make_agent("helper", per_message_micros=10)
    await books.set_caps(messages=billing_pb2.Cap(soft=2))
    await books.record(event("a/0", middle_of(LAST)))
    gone = workspace_pb2.DeleteWorkspaceRequest(workspace_id=books.workspace_id)
    await books.api.workspaces.DeleteWorkspace(gone)
    if purged:
        await books.api.workspaces.PurgeWorkspace(workspace_pb2.PurgeWorkspaceRequest(workspace_id=books.workspace_id))
    # What was under way when it was deleted.
    late = [event("b/0", middle_of(LAST)), event("c/0"), event("c/1")]
    assert await books.record(*late) == [False, False, False]
    assert owed((await books.bill(LAST)).totals) == {"USD": 20}
    assert (await books.close(LAST)).invoice == (await books.invoice(LAST)).invoice
    await books.adjust(-3)
    assert owed((await books.bill()).totals) == {"USD": 17}
    listed = await books.api.billing.ListInvoices(billing_pb2.ListInvoicesRequest(workspace_id=books.workspace_id))
    assert [invoice.month for invoice in listed.invoices] == [months.named(LAST)]
    span = {"start_time": fields.timestamp(middle_of(BEFORE)), "end_time": fields.timestamp(datetime.now(UTC))}
    used = usage_pb2.GetUsageRequest(workspace_id=books.workspace_id, **span)  # type: ignore[arg-type]
    assert (await books.api.usage.GetUsage(used)).messages == 4
    assert await agreed(owner, books.workspace_id) == 4
    # Its caps are nobody's business any more.
    assert await books.crossings() == ["caps.set"]
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await books.caps()
    with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
        await books.set_caps()
    audit.verify(await exported(books.api, books.workspace_id))


async def test_a_workspace_that_never_was_owes_nothing(api: Registry) -> None:
    books = Books(api, "nowhere")
    list_request = billing_pb2.ListInvoicesRequest(workspace_id="nowhere")
    for asked in (
        lambda: books.bill(),
        lambda: books.close(LAST),
        lambda: books.invoice(LAST),
        lambda: books.adjust(1),
        lambda: books.record(event("a/0")),
        lambda: books.record(event("a/0", middle_of(LAST))),
        lambda: api.billing.ListInvoices(list_request),
    ):
        with unknown(Reason.REASON_WORKSPACE_UNKNOWN):
            await asked()


async def test_many_who_record_while_months_are_closed_lose_nothing(books: Books, owner: Connection) -> None:
    await books.make_agent("helper", per_message_micros=11)

    answered, all_closed = Answered(), asyncio.Event()

    async def records(writer: int) -> int:
        for number in itertools.count():
            if all_closed.is_set():
                return number
            events = [event(f"{writer}-{number}/{index}", middle_of(months_ago(number % 4))) for index in range(5)]
            await answered.insist(partial(books.record, *events))
        raise AssertionError

    writers = [asyncio.create_task(records(writer)) for writer in range(6)]
    for count in (3, 2, 1):
        await answered.progress(12)
        closed = await insist(partial(books.close, months_ago(count)))  # in the way may be who records into the month
        assert closed.closed
        await agreed(owner, books.workspace_id)
    await answered.progress(12)
    all_closed.set()
    batches = sum(await asyncio.gather(*writers))
    assert await agreed(owner, books.workspace_id) == 5 * batches


# Adjustments.


async def test_an_adjustment_is_a_line_of_its_own_audited_and_made_once(books: Books, owner: Connection) -> None:
    first = await books.adjust(-2_000_000, request_id="r")
    assert await books.adjust(-2_000_000, request_id="r") == first
    bill = await books.bill()
    (line,) = bill.lines
    assert (line.adjustment_id, line.reason, line.agent_id, line.kind) == (first.adjustment_id, "as agreed", "", "")
    assert owed(bill.totals) == {"USD": -2_000_000}
    (entry,) = await books.api.trail(books.workspace_id, resource_kind="adjustment")
    assert (entry.action, entry.resource_id) == ("adjustment.create", first.adjustment_id)
    assert await agreed(owner, books.workspace_id) == 0


async def test_bad_adjustments_are_refused_by_field(books: Books) -> None:
    for micros in (0, COST_MAX + 1, -COST_MAX - 1):
        with invalid("adjustment.amount.amount_micros"):
            await books.adjust(micros)
    with invalid("adjustment.amount.currency"):
        await books.adjust(1, currency="usd")
    with invalid("adjustment.about_month"):
        await books.adjust(1, months.after(this_month()))
    with invalid("adjustment.amount"):
        draft = billing_pb2.Adjustment(workspace_id=books.workspace_id, reason="why")
        await books.api.billing.CreateAdjustment(billing_pb2.CreateAdjustmentRequest(adjustment=draft))


async def test_an_adjustment_that_would_not_fit_is_refused(books: Books, owner: Connection) -> None:
    await books.adjust(1)
    full = "UPDATE registry.usage_totals SET cost_micros = 9223372036854775807 WHERE workspace_id = $1 AND currency = 'USD'"
    await owner.execute(full, books.workspace_id)
    with invalid("adjustment.amount.amount_micros"):
        await books.adjust(1)


# Caps.


@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 20))
def test_a_cap_is_reached_when_it_is_used_up(soft: int, hard: int, used: int) -> None:
    state = Cap(soft, hard).state(used)
    assert (state is CapState.HARD) == (0 < hard <= used)
    assert (state is CapState.NONE) == (not 0 < hard <= used and not 0 < soft <= used)


def test_the_worst_cap_decides() -> None:
    caps = Caps("w", Cap(1, 0), Cap(0, 5), Cap(3, 4))
    states = [caps.state(Used(LAST, *used)) for used in ((0, 0, 0), (1, 0, 0), (1, 5, 0), (0, 0, -9), (0, 0, 3), (0, 0, 4))]
    assert states == [CapState.NONE, CapState.SOFT, CapState.HARD, CapState.NONE, CapState.SOFT, CapState.HARD]


def test_who_comes_late_tells_nothing_of_a_month_that_is_over() -> None:
    told = Told(CapState.NONE, this_month())
    assert not told.is_crossed_by(CapState.HARD, LAST)
    assert told.is_crossed_by(CapState.HARD, this_month())


def test_what_was_told_of_a_month_says_nothing_of_the_next_one() -> None:
    crossed = [
        (earlier, later)
        for earlier in CapState
        for later in CapState
        if Told(earlier, LAST).is_crossed_by(later, this_month())
    ]
    assert (CapState.NONE, CapState.NONE) not in crossed
    assert len(crossed) == 3 * 3 - 1


async def test_each_crossing_is_one_change_in_either_direction(books: Books, owner: Connection) -> None:
    await books.make_agent("helper", per_message_micros=10)
    caps = await books.set_caps(cost_micros=billing_pb2.Cap(soft=30, hard=50))
    assert (caps.state, caps.currency) == (billing_pb2.CAP_STATE_NONE, "USD")

    async def state_after(number: int) -> int:
        assert await books.record(event(f"{number}/0")) == [False]
        return (await books.caps()).state

    states = [await state_after(number) for number in range(6)]
    none, soft, hard = billing_pb2.CAP_STATE_NONE, billing_pb2.CAP_STATE_SOFT, billing_pb2.CAP_STATE_HARD
    assert states == [none, none, soft, soft, hard, hard]
    assert await books.crossings() == ["caps.set", "caps.cross", "caps.cross"]
    # Recording goes on: what was used is owed.
    assert (await books.caps()).cost_used_micros == 60
    raised = await books.set_caps(cost_micros=billing_pb2.Cap(soft=100, hard=200))
    assert raised.state == none
    lowered = await books.set_caps(messages=billing_pb2.Cap(hard=1))
    assert lowered.state == hard
    assert await books.crossings() == ["caps.set", "caps.cross", "caps.cross", *["caps.set", "caps.cross"] * 2]
    # Two of the changes were a setting and a crossing at once: each revision tells it.
    assert await owner.fetchval(PLAN_REVISIONS, books.workspace_id) == 5


async def test_a_credit_can_take_a_workspace_back_below_its_cap(books: Books) -> None:
    await books.make_agent("helper", per_message_micros=10)
    await books.set_caps(cost_micros=billing_pb2.Cap(hard=10))
    await books.record(event("a/0"))
    assert (await books.caps()).state == billing_pb2.CAP_STATE_HARD
    await books.adjust(-1)
    assert (await books.caps()).state == billing_pb2.CAP_STATE_NONE
    await books.adjust(1)
    assert await books.crossings() == ["caps.set", "caps.cross", "caps.cross", "caps.cross"]


async def test_many_who_cross_a_cap_together_tell_it_once(books: Books, owner: Connection) -> None:
    await books.set_caps(messages=billing_pb2.Cap(soft=50, hard=100), tokens=billing_pb2.Cap(soft=10**9))

    async def records(writer: int) -> None:
        for number in range(10):
            await books.record(*(event(f"{writer}-{number}/{index}", agent_id=f"agent-{index}") for index in range(2)))

    await asyncio.gather(*map(records, range(8)))
    assert (await books.caps()).messages_used == 160
    assert await books.crossings() == ["caps.set", "caps.cross", "caps.cross"]
    assert await agreed(owner, books.workspace_id) == 160


async def test_caps_that_are_set_while_usage_is_recorded_miss_no_crossing(books: Books) -> None:
    """Whoever comes second sees what the first has done."""
    for number in range(10):
        cap = billing_pb2.Cap(hard=number + 1)
        await asyncio.gather(books.record(event(f"{number}/0")), books.set_caps(messages=cap))
        assert (await books.caps()).state == billing_pb2.CAP_STATE_HARD
        newest = (await books.api.trail(books.workspace_id, resource_kind="caps"))[-1]
        assert '"CAP_STATE_HARD"' in newest.after_json


async def test_a_new_month_takes_back_what_was_told_of_the_old_one(books: Books, owner: Connection) -> None:
    await books.set_caps(messages=billing_pb2.Cap(hard=1))
    await books.record(event("a/0"))
    # A month passes.
    for table in ("usage_sums", "usage_totals"):
        await owner.execute(f"UPDATE registry.{table} SET month = $2 WHERE workspace_id = $1", books.workspace_id, LAST)
    await owner.execute("UPDATE registry.usage_caps SET month = $2 WHERE workspace_id = $1", books.workspace_id, LAST)
    assert (await books.caps()).state == billing_pb2.CAP_STATE_NONE
    await books.record(event("b/0", messages=0))
    assert await books.crossings() == ["caps.set", "caps.cross", "caps.cross"]
    await books.record(event("b/1", messages=0))
    assert len(await books.crossings()) == 3


@pytest.fixture
async def swept_caps(database_settings: DatabaseSettings, books: Books) -> AsyncIterator[PostgresCaps]:
    """Caps to be renewed when the test says so; the service does it as well."""
    pool = await postgres.open_pool(database_settings, name="test")
    system = await postgres.open_pool(database_settings.system, name="test")
    yield PostgresCaps(Reads(pool), Changes(pool, Requests("registry", is_swept=True)), system)
    await postgres.close_pool(system)
    await postgres.close_pool(pool)


async def pass_a_month(owner: Connection, workspace_id: str) -> None:
    for table in ("usage_sums", "usage_totals", "usage_caps"):
        await owner.execute(f"UPDATE registry.{table} SET month = $2 WHERE workspace_id = $1", workspace_id, LAST)


async def test_a_cap_that_is_crossed_in_the_next_month_too_is_told_of_it(
    books: Books, owner: Connection, swept_caps: PostgresCaps
) -> None:
    """Else who knows that a month has ended lets it through again; and the sweep would find it for ever."""
    await books.set_caps(messages=billing_pb2.Cap(hard=1))
    await books.record(event("a/0"))
    async with owner.transaction():  # before the sweep of the service comes
        await pass_a_month(owner, books.workspace_id)
        sums = "INSERT INTO registry.usage_totals (workspace_id, month, currency, messages) VALUES ($1, $2, '', 1)"
        await owner.execute(sums, books.workspace_id, this_month())
    await swept_caps.renew(100)
    assert await swept_caps.renew(100) == 0
    newest = (await books.api.trail(books.workspace_id, resource_kind="caps"))[-1]
    assert newest.action == "caps.cross"
    for text, month in ((newest.before_json, LAST), (newest.after_json, this_month())):
        assert '"CAP_STATE_HARD"' in text
        assert f'"{months.named(month)}"' in text


async def test_one_whose_caps_cannot_be_taken_back_holds_up_no_other(
    books: Books, owner: Connection, application: Connection, swept_caps: PostgresCaps
) -> None:
    stuck = Books(books.api, (await books.api.make_workspace(f"0-{books.workspace_id}")).workspace_id)
    for each in (stuck, books):
        await each.set_caps(messages=billing_pb2.Cap(soft=1))
        await each.record(event("a/0"))
    async with application.transaction():
        await application.execute("SELECT set_config('twofold.workspaces', $1, true)", stuck.workspace_id)
        await application.execute("SELECT FROM registry.workspaces WHERE workspace_id = $1 FOR UPDATE", stuck.workspace_id)
        for each in (stuck, books):
            await pass_a_month(owner, each.workspace_id)
        with pytest.raises(Busy):
            await swept_caps.renew(100)
        told = "SELECT state FROM registry.usage_caps WHERE workspace_id = $1"
        assert [await owner.fetchval(told, each.workspace_id) for each in (stuck, books)] == ["soft", "none"]
    await swept_caps.renew(100)
    assert await owner.fetchval(told, stuck.workspace_id) == "none"


async def test_the_sweep_takes_it_back_where_nothing_is_used_any_more(
    books: Books, owner: Connection, swept_caps: PostgresCaps
) -> None:
    await books.set_caps(messages=billing_pb2.Cap(soft=1))
    await books.record(event("a/0"))
    await pass_a_month(owner, books.workspace_id)
    await swept_caps.renew(100)  # if that of the service has not come before
    assert await swept_caps.renew(100) == 0
    newest = (await books.api.trail(books.workspace_id, resource_kind="caps"))[-1]
    assert (newest.action, newest.actor) == ("caps.cross", "system")
    assert '"CAP_STATE_SOFT"' in newest.before_json
    assert '"CAP_STATE_NONE"' in newest.after_json


async def test_caps_have_an_etag(books: Books) -> None:
    assert (await books.caps()).etag == ""
    first = await books.set_caps(messages=billing_pb2.Cap(hard=1))
    assert (await books.caps()).etag == first.etag
    await books.record(event("a/0"))  # crossing it is no new version of what was set
    assert (await books.caps()).etag == first.etag
    await books.set_caps(messages=billing_pb2.Cap(hard=2), etag=first.etag)
    with lost():
        await books.set_caps(messages=billing_pb2.Cap(hard=3), etag=first.etag)


@pytest.mark.parametrize(
    ("caps", "field"),
    [
        ({"messages": billing_pb2.Cap(soft=-1)}, "messages.soft"),
        ({"tokens": billing_pb2.Cap(hard=10**18 + 1)}, "tokens.hard"),
        ({"cost_micros": billing_pb2.Cap(soft=2, hard=1)}, "cost_micros.soft"),
        ({"currency": "US"}, "currency"),
    ],
)
async def test_bad_caps_are_refused_by_field(books: Books, caps: dict[str, object], field: str) -> None:
    with invalid(f"caps.{field}"):
        await books.set_caps(**caps)


async def test_money_in_another_currency_does_not_count_for_a_cap(books: Books) -> None:
    await books.make_agent("helper", per_message_micros=10, currency="EUR")
    await books.set_caps(cost_micros=billing_pb2.Cap(hard=1))
    await books.record(event("a/0"))
    assert (await books.caps()).state == billing_pb2.CAP_STATE_NONE
    in_euros = await books.set_caps(cost_micros=billing_pb2.Cap(hard=1), currency="EUR")
    assert (in_euros.state, in_euros.cost_used_micros) == (billing_pb2.CAP_STATE_HARD, 10)


@pytest.mark.parametrize("month", ["2026-13", "26-01", "1999-12", "2026-1", "2026-01-01", "２０２６-01"])
async def test_what_is_no_month_is_refused(books: Books, month: str) -> None:
    with invalid("month"):
        await books.api.billing.GetBill(billing_pb2.GetBillRequest(workspace_id=books.workspace_id, month=month))


async def test_usage_is_told_at_least_as_new_as_asked(books: Books) -> None:
    adjusted = await books.api.billing.CreateAdjustment(
        billing_pb2.CreateAdjustmentRequest(
            adjustment=billing_pb2.Adjustment(
                workspace_id=books.workspace_id, amount=usage_pb2.Money(amount_micros=1), reason="why"
            )
        )
    )
    request = billing_pb2.GetBillRequest(workspace_id=books.workspace_id, min_revision_token=adjusted.revision_token)
    assert owed((await books.api.billing.GetBill(request)).totals) == {"USD": 1}
    span = {
        "start_time": fields.timestamp(datetime(2026, 1, 1, tzinfo=UTC)),
        "end_time": fields.timestamp(datetime.now(UTC)),
    }
    bad = usage_pb2.GetUsageRequest(workspace_id=books.workspace_id, min_revision_token=b"bad", **span)  # type: ignore[arg-type]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.REASON_INVALID_TOKEN, "min_revision_token"):
        await books.api.usage.GetUsage(bad)
