"""C13: the sum of distinct events = rollup = invoice, at every instant, under retries and crashes.

An event is counted 0 or 1 times whatever is killed, and a repeat makes it 1.

`TWOFOLD_USAGE_KILLS` says how many times Postgres is killed (default: 20).
"""

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial

import asyncpg
import grpc
import pytest
import structlog.testing
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.databases import settings_of_database
from tests.registry.billing import CLAIM, Books, agreed, event, middle_of, months_ago, owed
from tests.registry.stubs import Answered, Connection, Registry, refused, settings_of
from tests.registry.test_usage_reports import grouped
from tests.waiting import somebody_waits
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import usage_pb2
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_registry import months
from twofold_registry.app import registry

KILLS = int(os.environ.get("TWOFOLD_USAGE_KILLS", "20"))
BATCHES = 12


async def record(books: Books, batch: list[usage_pb2.UsageEvent], chance: random.Random) -> None:
    """Some calls are given up in the middle, and sent again."""
    while chance.random() < 0.2:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(0, 0.02)):
                await books.record(*batch)
    await books.record(*batch)


async def test_c13_after_kills_of_postgres_and_calls_given_up_each_event_counts_once(own_postgres: EmbeddedPostgres) -> None:
    chance = random.Random(13)
    database = settings_of_database(own_postgres, pool_size_max=6)
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(registry(settings_of(database)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{running.port}"))
        api = Registry(channel)
        books = Books(api, (await api.make_workspace("")).workspace_id)
        await books.make_agent("helper", per_message_micros=17, per_1000_input_tokens_micros=333)
        cap = {"soft": 100, "hard": 300}
        await books.set_caps(messages=cap)

        total, cost = 0, 0
        for kill in range(KILLS):
            events = [event(f"{kill}/{number}", input_tokens=number, user_id=f"u{number % 3}") for number in range(60)]
            total += len(events)
            cost += sum((1000 * 17 + number * 333 + 500) // 1000 for number in range(60))
            sent = [each for each in events for _ in range(chance.randint(1, 5))]
            chance.shuffle(sent)
            size = -(-len(sent) // BATCHES)
            batches = [sent[start : start + size] for start in range(0, len(sent), size)]
            answered = Answered()
            tasks = [asyncio.create_task(answered.insist(partial(record, books, batch, chance))) for batch in batches]
            await answered.progress(chance.randrange(BATCHES // 2))
            await own_postgres.kill()
            await own_postgres.start()
            await asyncio.gather(*tasks)
            owner = await asyncpg.connect(own_postgres.owner_url)
            try:
                assert await agreed(owner, books.workspace_id) == total
            finally:
                await owner.close()
        assert owed((await books.bill()).totals) == {"USD": cost}
        crossings = (await books.crossings()).count("caps.cross")
        assert crossings == (total >= cap["soft"]) + (total >= cap["hard"])


@pytest.fixture
async def refused_sums(owner: Connection) -> AsyncIterator[str]:
    """A user whose usage the database does not sum up."""
    await owner.execute(
        "ALTER TABLE registry.usage_sums ADD CONSTRAINT none_of_the_doomed CHECK (user_id <> 'doomed') NOT VALID"
    )
    yield "doomed"
    await owner.execute("ALTER TABLE registry.usage_sums DROP CONSTRAINT IF EXISTS none_of_the_doomed")


async def test_c13_what_fails_behind_the_claim_of_its_id_has_not_claimed_it(
    api: Registry, owner: Connection, workspace: str, refused_sums: str
) -> None:
    """An id that is claimed in a transaction of its own takes its event away for ever if the recording fails."""
    books = Books(api, workspace)
    batch = [event("a/0"), event("a/1", user_id=refused_sums)]
    with structlog.testing.capture_logs(), refused(grpc.StatusCode.INTERNAL, Reason.REASON_INTERNAL):
        await books.record(*batch)
    assert await agreed(owner, workspace) == 0
    await owner.execute("ALTER TABLE registry.usage_sums DROP CONSTRAINT none_of_the_doomed")
    assert await books.record(*batch) == [False, False]
    assert await agreed(owner, workspace) == 2


async def test_c13_batches_with_ids_in_common_agree_at_every_instant(
    api: Registry, owner: Connection, workspace: str
) -> None:
    chance = random.Random(5)
    books = Books(api, workspace)
    events = [event(f"{number}/0", user_id=f"u{number % 7}", agent_id=f"a{number % 5}") for number in range(200)]
    batches = [chance.sample(events, chance.randint(1, 60)) for _ in range(60)]
    answers: list[list[bool]] = []

    async def sends(mine: list[list[usage_pb2.UsageEvent]]) -> None:
        answers.extend([await books.record(*batch) for batch in mine])

    senders = [asyncio.create_task(sends(batches[start::8])) for start in range(8)]
    looks = 0
    while not all(sender.done() for sender in senders):
        await agreed(owner, workspace)
        looks += 1
    await asyncio.gather(*senders)
    distinct = {each.event_id for batch in batches for each in batch}
    assert looks >= 3
    assert await agreed(owner, workspace) == len(distinct)
    assert sum(answer.count(False) for answer in answers) == len(distinct)


async def test_a_duplicate_waits_for_the_first_and_then_is_told_the_truth(
    api: Registry, owner: Connection, workspace: str
) -> None:
    books = Books(api, workspace)
    async with owner.transaction():
        await owner.execute(CLAIM, workspace, "a/0")
        second = asyncio.create_task(books.record(event("a/0")))
        await somebody_waits(owner)
        assert not second.done()
    with refused(grpc.StatusCode.ALREADY_EXISTS, Reason.REASON_EVENT_REUSED):
        await second
    await owner.execute("DELETE FROM registry.usage_keys WHERE workspace_id = $1", workspace)


# Everything against a model in Python.

AGENTS = {"cheap": 3, "dear": 1_000_001, "free": 0}
ACTIONS = st.one_of(
    st.tuples(
        st.just("record"),
        st.lists(
            st.tuples(st.integers(0, 30), st.integers(0, 3), st.sampled_from(sorted(AGENTS)), st.integers(0, 2)),
            min_size=1,
            max_size=8,
        ),
    ),
    st.tuples(st.just("close"), st.integers(1, 3)),
    st.tuples(st.just("adjust"), st.integers(0, 3), st.integers(-5, 5).filter(bool)),
)


@dataclass
class Model:
    """What a bookkeeper would write down. Months are counted back from the current one, which is 0."""

    bodies: dict[str, tuple[object, ...]] = field(default_factory=dict)
    bills: Counter[int] = field(default_factory=Counter)
    used: Counter[tuple[int, str]] = field(default_factory=Counter)
    touched: set[int] = field(default_factory=set)
    closed: int = 4
    """The newest closed month; 4: none of those that there are."""
    frozen: dict[int, int] = field(default_factory=dict)

    def booked(self, ago: int) -> int:
        return min(ago, self.closed - 1)

    def record(self, ago: int, name: str, agent: str, messages: int) -> None:
        month = self.booked(ago)
        self.bills[month] += messages * AGENTS[agent]
        self.used[ago, agent] += messages
        self.touched.add(month)
        self.bodies[name] = (ago, agent, messages)

    def can_close(self, ago: int) -> bool:
        return ago < self.closed and not any(ago < month < self.closed for month in self.touched)


async def follow(books: Books, model: Model, action: tuple[object, ...]) -> None:
    """Does the same to both, and sees that they say the same."""
    match action:
        case ("record", list(asked)):
            bodies = {f"{number}/0": (ago, agent, messages) for number, ago, agent, messages in asked}
            batch = [
                event(name, middle_of(months_ago(ago)), agent_id=agent, messages=messages)
                for name, (ago, agent, messages) in bodies.items()
            ]
            if any(model.bodies.get(name, body) != body for name, body in bodies.items()):
                with refused(grpc.StatusCode.ALREADY_EXISTS, Reason.REASON_EVENT_REUSED):
                    await books.record(*batch)
                return
            assert await books.record(*batch) == [name in model.bodies for name in bodies]
            for name, body in bodies.items():
                if name not in model.bodies:
                    model.record(body[0], name, body[1], body[2])
        case ("close", int(ago)):
            if ago in model.frozen:
                assert not (await books.close(months_ago(ago))).closed
            elif not model.can_close(ago):
                with refused(grpc.StatusCode.FAILED_PRECONDITION, Reason.REASON_MONTH_ORDER):
                    await books.close(months_ago(ago))
            else:
                assert (await books.close(months_ago(ago))).closed
                model.closed, model.frozen[ago] = ago, model.bills[ago]
        case ("adjust", int(ago), int(micros)):
            made = await books.adjust(micros, months_ago(ago))
            month = model.booked(ago)
            assert made.month == months.named(months_ago(month))
            model.bills[month] += micros
            model.touched.add(month)


async def compare(books: Books, owner: Connection, model: Model) -> None:
    assert await agreed(owner, books.workspace_id) == len(model.bodies)
    for ago in range(4):
        assert owed((await books.bill(months_ago(ago))).totals).get("USD", 0) == model.bills[ago]
        # By whole months from the sums, and but for a microsecond from the events: the same.
        start, end = months.begin_of(months_ago(ago)), months.begin_of(months.after(months_ago(ago)))
        for shift in (0, 1):
            found = await by_agent(books, start, end, shift)
            assert found == {agent: count for (month, agent), count in model.used.items() if month == ago and count}
    for ago, amount in model.frozen.items():
        invoice = await books.invoice(months_ago(ago))
        assert sum(line.amount.amount_micros for line in invoice.lines) == amount
        assert owed(invoice.invoice.totals).get("USD", 0) == amount


async def by_agent(books: Books, start: datetime, end: datetime, shift: int) -> dict[str, int]:
    return {name: group.messages for name, group in (await grouped(books, start, end, shift)).items() if group.messages}


@settings(max_examples=12, deadline=None, phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck))
@given(st.lists(ACTIONS, min_size=3, max_size=14))
async def test_c13_any_order_of_recording_closing_and_adjusting_agrees_with_a_bookkeeper(
    api: Registry, owner: Connection, actions: list[tuple[object, ...]]
) -> None:
    books, model = Books(api, (await api.make_workspace("")).workspace_id), Model()
    for agent, micros in AGENTS.items():
        await books.make_agent(agent, per_message_micros=micros)
    for action in actions:
        await follow(books, model, action)
    await compare(books, owner, model)


def test_the_model_knows_the_months_of_the_tests() -> None:
    ago: list[date] = [months_ago(count) for count in range(4)]
    assert [months.after(month) for month in ago[1:]] == ago[:-1]
