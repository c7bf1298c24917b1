"""What is told of a turn that runs, to any number of listeners, from wherever they are; how turns begin and end."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twofold_chassis.refusals import Draining, Overloaded, Refusal, Unavailable
from twofold_router.agents import Usage
from twofold_router.asks import Ask
from twofold_router.resolution import Question
from twofold_router.routes import AgentKey
from twofold_router.running import Run, Runs, TurnCancelled
from twofold_router.turn_events import Completed, Delta, Started

DONE = Completed("stop", Usage(1, 1), True, None)
BEGUN = Started("op", "router")
WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=8)


def ask(operation_id: str = "op", *, keep_running: bool = False) -> Ask:
    question = Question(AgentKey("w", "agent"), "ada")
    return Ask(question, None, operation_id, False, "Hello.", keep_running=keep_running)


def runs(*, turns_max: int = 10, detached_s: float = 0, kept_s: float = 60, kept_max: int = 10) -> Runs:
    return Runs(turns_max=turns_max, detached_s=detached_s, kept_s=kept_s, kept_max=kept_max, gauge=lambda count: None)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(words=WORDS, listeners=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), max_size=5), fails=st.booleans())
async def test_every_listener_is_told_the_rest_of_the_answer_once_and_in_order(
    words: list[str], listeners: list[tuple[int, int]], fails: bool
) -> None:
    """Each joins after so many words with what was said so many words before, and reads when it comes to it."""
    run = Run(ask(), lambda left: None)
    answer = "".join(words).encode()

    async def listen(offset: int) -> bytes:
        said, started, ended = b"", 0, 0
        try:
            async with aclosing(run.events(offset)) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        assert (started, ended) == (1, 0)
                        assert event.offset == offset + len(said)
                        said += event.text.encode()
                    started += isinstance(event, Started)
                    ended += isinstance(event, Completed)
        except Unavailable:
            ended += 1
        assert (started, ended) == (1, 1)
        return said

    tasks = []
    run.tell(BEGUN)
    for number in range(len(words) + 1):
        for after, behind in listeners:
            if after == number:
                offset = len("".join(words[: max(0, number - behind)]).encode())
                run.require_offset(offset)
                tasks.append((offset, asyncio.create_task(listen(offset))))
        await asyncio.sleep(0)
        if number < len(words):
            run.say(words[number])
    if fails:
        run.refuse(Unavailable("no"))
    else:
        run.tell(DONE)
    for offset, task in tasks:
        assert await task == answer[offset:]


async def test_a_piece_is_bounded_and_ends_between_characters() -> None:
    run = Run(ask(), lambda left: None)
    run.tell(BEGUN)
    text = "x" + "é" * 100_000
    run.say(text)
    run.tell(DONE)
    pieces = [event.text async for event in run.events() if isinstance(event, Delta)]
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= 64 * 1024


async def test_stopping_ends_what_is_stoppable_and_nothing_else() -> None:
    async def course(run: Run) -> None:
        try:
            await run.stoppable(asyncio.Event().wait())
        except TurnCancelled as cause:
            await asyncio.sleep(0)  # closing it
            run.refuse(cause)

    turns = runs()
    run = turns.begin(ask(), course)
    await asyncio.sleep(0)
    run.stop(TurnCancelled("no more"))
    run.stop(Draining("and again"))
    await run.over()
    assert isinstance(run.refusal, TurnCancelled)
    with pytest.raises(TurnCancelled):
        [event async for event in run.events()]


async def test_a_turn_that_was_stopped_before_it_could_be_does_not_begin_what_is_stoppable() -> None:
    run, begun = Run(ask(), lambda left: None), False

    async def work() -> None:
        nonlocal begun
        begun = True

    run.stop(TurnCancelled("no more"))
    with pytest.raises(TurnCancelled):
        await run.stoppable(work())
    assert not begun


def ends_when(told: asyncio.Event) -> Callable[[Run], Coroutine[Any, Any, None]]:
    async def course(run: Run) -> None:
        run.tell(BEGUN)
        await told.wait()
        run.tell(DONE)

    return course


async def test_turns_are_bounded_and_what_has_ended_is_forgotten() -> None:
    told, turns = asyncio.Event(), runs(turns_max=2, kept_max=1)
    first, second = (turns.begin(ask(name), ends_when(told)) for name in ("op-1", "op-2"))
    with pytest.raises(Overloaded):
        turns.begin(ask("op-3"), ends_when(told))
    assert turns.find(first.ask.name) is first
    told.set()
    await asyncio.gather(first.over(), second.over())
    assert turns.find(first.ask.name) is None
    assert turns.find(second.ask.name) is second
    third = turns.begin(ask("op-2"), ends_when(told))
    assert turns.find(second.ask.name) is third
    await third.over()


async def test_what_has_ended_is_bounded_in_bytes() -> None:
    async def course(run: Run) -> None:
        run.say("x" * 60)
        run.tell(DONE)

    turns = Runs(turns_max=9, detached_s=0, kept_s=60, kept_max=9, kept_bytes_max=150, gauge=lambda count: None)
    begun = []
    for name in ("op-1", "op-2", "op-1", "op-3", "op-4"):
        begun.append(turns.begin(ask(name), course))
        await begun[-1].over()
    assert [turns.find(run.ask.name) is run for run in begun] == [False, False, False, True, True]


async def test_what_has_ended_is_bounded_with_the_question_that_it_answers() -> None:
    async def course(run: Run) -> None:
        run.tell(DONE)

    turns = Runs(turns_max=9, detached_s=0, kept_s=60, kept_max=9, kept_bytes_max=150, gauge=lambda count: None)
    begun = []
    for name in ("op-1", "op-2", "op-3"):
        begun.append(turns.begin(replace(ask(name), message="x" * 60), course))
        await begun[-1].over()
    assert [turns.find(run.ask.name) is run for run in begun] == [False, True, True]


async def test_who_listens_to_a_turn_that_broke_down_without_a_word_is_told_so() -> None:
    async def course(run: Run) -> None:
        raise ValueError("a defect")

    run = runs().begin(ask(), course)
    with pytest.raises(Refusal):
        async with asyncio.timeout(10):
            [event async for event in run.events()]


async def test_a_turn_that_is_listened_to_again_is_not_stopped_for_who_left_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The span begins with the last listener that leaves: what an earlier one set off ends when another one comes."""
    pending: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def remembered(delay: float, *rest: Any, **context: Any) -> asyncio.TimerHandle:
        handle = call_later(delay, *rest, **context)
        if delay == 3600:
            pending.append(handle)
        return handle

    monkeypatch.setattr(loop, "call_later", remembered)
    told = asyncio.Event()
    run = runs(detached_s=3600).begin(ask(), ends_when(told))
    for _ in range(3):
        async with aclosing(run.events()) as events:
            await anext(events)
            assert all(handle.cancelled() for handle in pending)
    assert [handle.cancelled() for handle in pending] == [True, True, False]
    told.set()
    await run.over()
    assert all(handle.cancelled() for handle in pending)


async def test_what_ends_is_stopped_but_waited_for_and_nothing_begins_any_more() -> None:
    ended = []

    async def course(run: Run) -> None:
        try:
            await run.stoppable(asyncio.Event().wait())
        except Draining as refusal:
            await asyncio.sleep(0.01)
            run.refuse(refusal)
            ended.append(run)

    turns = runs()
    run = turns.begin(ask(keep_running=True), course)
    await asyncio.sleep(0)
    await turns.close()
    assert ended == [run]
    with pytest.raises(Draining):
        turns.begin(ask("op-2"), course)
