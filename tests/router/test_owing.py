"""Usage that the registry did not hear of: it is told in the end, once, whoever's turns they were."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from aiohttp import web

from tests.router.conftest import Client, Start
from tests.router.fakes import FakeMemory, FakeRegistry
from tests.router.scripted import Heard, ScriptedAgents
from tests.waiting import until
from twofold_chassis.refusals import AlreadyExists, NotFound, Reason, Unavailable
from twofold_router.agents import Usage
from twofold_router.conversations import TurnKey
from twofold_router.ledger import Owed, UsageEvent
from twofold_router.owing import Owing

AT = datetime(2026, 1, 5, tzinfo=UTC)
AWAY = Unavailable("not now")


async def test_usage_that_the_registry_did_not_hear_of_is_told_by_any_router(
    start: Start, registry: FakeRegistry, memory: FakeMemory, ws: str
) -> None:
    registry.calls.refuse("RecordUsage", AWAY, times=1000)
    async with start() as client:
        turn = await client.turn(ws, thread_id="t", operation_id="op")
        assert not turn.completed.usage_recorded
        at = memory.open_turns.owed[ws, "t", "op"].owed_usage.event_time
    assert not registry.events  # and that router is gone
    registry.calls.refusals.clear()
    async with start(usage_sweep_s=0.05):
        await until(lambda: not memory.open_turns.owed)
    event = registry.events[ws, "op/0"]
    assert (event.user_id, event.agent_id, event.thread_id, event.event_time) == ("ada", "agent", "t", at)
    assert (event.messages, event.input_tokens, event.output_tokens) == (1, 7, 3)


async def test_usage_of_an_interrupted_turn_is_told_as_well(
    start: Start, registry: FakeRegistry, memory: FakeMemory, agents: ScriptedAgents, ws: str
) -> None:
    async def cut(heard: Heard) -> web.StreamResponse:
        response = await heard.stream()
        await response.write(b'data: {"choices": [{"delta": {"content": "Hel"}}], "usage": {"prompt_tokens": 9,')
        await response.write(b' "completion_tokens": 2}}\n\n')
        return response

    agents.agent("agent", cut)
    registry.calls.refuse("RecordUsage", AWAY, times=1000)
    async with start(usage_sweep_s=0.05) as client:
        with pytest.raises(Exception, match="hung up"):
            await client.turn(ws, thread_id="t", operation_id="op")
        registry.calls.refusals.clear()
        await until(lambda: (ws, "op/0") in registry.events)
    event = registry.events[ws, "op/0"]
    assert (event.input_tokens, event.output_tokens) == (9, 2)  # as the agent reported it


async def test_usage_of_a_turn_that_is_kept_nowhere_waits_in_its_router(
    start: Start, registry: FakeRegistry, ws: str
) -> None:
    registry.calls.refuse("RecordUsage", AWAY, times=1000)
    async with start(usage_sweep_s=0.05) as client:
        assert not (await client.turn(ws, operation_id="op")).completed.usage_recorded
        registry.calls.refusals.clear()
        await until(lambda: (ws, "op/0") in registry.events)


async def test_what_is_recorded_with_its_turn_is_acknowledged_without_a_sweep(
    client: Client, memory: FakeMemory, ws: str
) -> None:
    assert (await client.turn(ws, thread_id="t", operation_id="op")).completed.usage_recorded
    await until(lambda: (ws, "t", "op") not in memory.open_turns.owed)


class Book:
    """What memory keeps."""

    def __init__(self, *owed: Owed) -> None:
        self.all = list(owed)

    async def owed(self, page_token: str, count: int, min_age_s: float) -> tuple[Sequence[Owed], str]:
        begin = int(page_token or 0)
        page = self.all[begin : begin + count]
        return page, str(begin + count) if begin + count < len(self.all) else ""

    async def acknowledge(self, turns: Sequence[TurnKey]) -> None:
        self.all = [owed for owed in self.all if owed.turn not in turns]


class Ledger:
    """What the registry takes; all or none of a batch."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.refuses: dict[str, Exception] = {}
        self.batches: list[int] = []

    async def record(self, workspace_id: str, events: Sequence[UsageEvent]) -> None:
        self.batches.append(len(events))
        for event in events:
            if event.event_id in self.refuses:
                raise self.refuses[event.event_id]
        self.told += [event.event_id for event in events]


def owed(number: int, workspace_id: str = "w") -> Owed:
    name = f"op{number}"
    event = UsageEvent(f"{name}/0", workspace_id, "ada", "agent", "t", AT, Usage(1, 1))
    return Owed(event, TurnKey(workspace_id, "t", name))


class EventReused(AlreadyExists):
    reason = Reason.REASON_EVENT_REUSED


class WorkspaceUnknown(NotFound):
    reason = Reason.REASON_WORKSPACE_UNKNOWN


def owing(book: Book, ledger: Ledger, told: list[int]) -> Owing:
    return Owing(book, ledger, period_s=3600, told=told.append)


async def test_one_event_that_is_not_taken_keeps_no_other_from_being_told() -> None:
    told: list[int] = []
    book, ledger = Book(*(owed(number) for number in range(5)), owed(5, "gone")), Ledger()
    ledger.refuses = {
        "op1/0": EventReused("as another"),
        "op3/0": WorkspaceUnknown("gone"),
        "op5/0": WorkspaceUnknown("gone"),
    }
    for _ in range(2):
        await owing(book, ledger, told).round()
    assert ledger.told == ["op0/0", "op2/0", "op4/0"]
    # Reused: it counted as it was told first. The other two stay owed, for a person to look at.
    assert [each.event.event_id for each in book.all] == ["op3/0", "op5/0"]


async def test_a_registry_that_is_away_is_not_asked_for_each_event() -> None:
    book, ledger = Book(*(owed(number) for number in range(600))), Ledger()
    ledger.refuses = {"op0/0": AWAY}
    with pytest.raises(Unavailable):
        await owing(book, ledger, []).round()
    assert ledger.batches == [500]
    ledger.refuses.clear()
    told: list[int] = []
    await owing(book, ledger, told).round()
    assert (book.all, told, len(ledger.told)) == ([], [500, 100], 600)


async def test_what_waits_in_the_process_is_told_once_more_at_its_end() -> None:
    told: list[int] = []
    ledger = Ledger()
    owes = owing(Book(), ledger, told)
    async with owes.telling():
        owes.owe(owed(1).event)
        assert owes.waiting == 1
    assert (ledger.told, owes.waiting, told) == (["op1/0"], 0, [1])


async def test_an_end_is_not_held_up_by_a_registry_that_does_not_answer() -> None:
    class Silent(Ledger):
        async def record(self, workspace_id: str, events: Sequence[UsageEvent]) -> None:
            await asyncio.Event().wait()

    owes = owing(Book(), Silent(), [])
    async with asyncio.timeout(20), owes.telling():
        owes.owe(owed(1).event)
    assert owes.waiting == 1


async def test_what_two_acknowledge_at_once_is_acknowledged_once_and_nothing_is_forgotten() -> None:
    """The sweep and what follows each turn may meet."""
    told = asyncio.Event()

    class Slow(Book):
        def __init__(self) -> None:
            super().__init__()
            self.heard: list[TurnKey] = []

        async def acknowledge(self, turns: Sequence[TurnKey]) -> None:
            self.heard += turns
            await told.wait()

    book = Slow()
    owes = owing(book, Ledger(), [])
    turns = [TurnKey("w", "t", f"op{number}") for number in range(3)]
    owes.recorded(turns[0])
    both = [asyncio.create_task(owes.acknowledge()) for _ in range(2)]
    await asyncio.sleep(0)
    owes.recorded(turns[1])
    told.set()
    await asyncio.gather(*both)
    owes.recorded(turns[2])
    await owes.acknowledge()
    assert book.heard == turns


async def test_what_could_not_be_acknowledged_is_acknowledged_later() -> None:
    class Away(Book):
        def __init__(self) -> None:
            super().__init__()
            self.heard: list[TurnKey] = []
            self.away = True

        async def acknowledge(self, turns: Sequence[TurnKey]) -> None:
            if self.away:
                raise AWAY
            self.heard += turns

    book = Away()
    owes = owing(book, Ledger(), [])
    turns = [TurnKey("w", "t", f"op{number}") for number in range(3)]
    for turn in turns:
        owes.recorded(turn)
    with pytest.raises(Unavailable):
        await owes.acknowledge()
    book.away = False
    await owes.acknowledge()
    assert book.heard == turns
