"""Gathering: what waits together goes together, and nobody's fate touches another's."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from twofold_chassis import call
from twofold_chassis.gathering import Gathering, Late
from twofold_chassis.refusals import Overloaded

Run = Callable[[Sequence[int]], Awaitable[Sequence[int | BaseException]]]


class Store:
    """Doubles numbers, when it is allowed to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.at_once = 0
        self.at_once_most = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, items: Sequence[int]) -> Sequence[int | BaseException]:
        self.batches.append(list(items))
        self.at_once += 1
        self.at_once_most = max(self.at_once_most, self.at_once)
        await self.gate.wait()
        self.at_once -= 1
        return [ValueError(f"{item}") if item < 0 else 2 * item for item in items]


def gathering(run: Run, *, batch_max: int = 10, waiting_max: int = 100, lanes: int = 1) -> Gathering[int, int]:
    return Gathering(run, batch_max=batch_max, waiting_max=waiting_max, lanes=lanes)


async def turns_of_the_loop(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_while_one_batch_is_under_way_the_next_one_gathers_in_order_of_arrival() -> None:
    store = Store()
    store.gate.clear()
    asked = gathering(store.run)
    first = asked.ask(0)
    await turns_of_the_loop()
    rest = [asked.ask(number) for number in range(1, 25)]
    store.gate.set()
    assert await first == 0
    assert await asyncio.gather(*rest) == [2 * number for number in range(1, 25)]
    assert store.batches == [[0], list(range(1, 11)), list(range(11, 21)), list(range(21, 25))]


async def test_no_more_lanes_than_allowed_are_used_and_all_that_are_allowed() -> None:
    store = Store()
    store.gate.clear()
    asked = gathering(store.run, batch_max=1, lanes=3)
    answers = [asked.ask(number) for number in range(9)]
    await turns_of_the_loop()
    store.gate.set()
    assert await asyncio.gather(*answers) == [2 * number for number in range(9)]
    assert store.at_once_most == 3


@pytest.mark.parametrize("lanes", [1, 2])
async def test_who_asks_again_the_moment_it_is_answered_does_not_wait_for_somebody_to_come_by(lanes: int) -> None:
    """The lane has just run dry, but its task has not ended yet."""
    asked = gathering(Store().run, batch_max=1, lanes=lanes)

    async def ask_on_and_on() -> None:
        for number in range(50):
            assert await asked.ask(number) == 2 * number

    async with asyncio.timeout(10):
        await asyncio.gather(*(ask_on_and_on() for _ in range(lanes)))


async def test_an_exception_for_one_item_reaches_its_caller_alone() -> None:
    asked = gathering(Store().run)
    good, bad, fine = asked.ask(1), asked.ask(-1), asked.ask(2)
    assert await good == 2
    with pytest.raises(ValueError, match="-1"):
        await bad
    assert await fine == 4


async def test_what_the_run_raises_reaches_all_of_its_batch_and_the_next_batch_goes_on() -> None:
    failures = [OSError("away")]

    async def run(items: Sequence[int]) -> Sequence[int]:
        if failures:
            raise failures.pop()
        return list(items)

    asked = gathering(run)
    told = await asyncio.gather(asked.ask(1), asked.ask(2), return_exceptions=True)
    assert all(isinstance(answer, OSError) for answer in told)
    assert await asked.ask(3) == 3


async def test_a_wrong_number_of_answers_is_a_defect_for_all_and_hangs_nobody() -> None:
    async def run(items: Sequence[int]) -> Sequence[int]:
        return list(items)[1:]

    asked = gathering(run)
    async with asyncio.timeout(10):
        told = await asyncio.gather(asked.ask(1), asked.ask(2), return_exceptions=True)
    assert all(isinstance(answer, AssertionError) for answer in told)


async def test_a_caller_that_goes_away_leaves_its_item_in_the_batch_and_disturbs_nobody() -> None:
    store = Store()
    store.gate.clear()
    asked = gathering(store.run)
    blocker = asked.ask(0)
    await turns_of_the_loop()
    gone, stays = asked.ask(1), asked.ask(2)
    gone.cancel()
    store.gate.set()
    assert await stays == 4
    assert await blocker == 0
    assert store.batches == [[0], [1, 2]]


async def test_more_than_may_wait_is_refused_through_the_answer_and_what_waits_is_kept() -> None:
    store = Store()
    store.gate.clear()
    asked = gathering(store.run, batch_max=1, waiting_max=3)
    under_way = asked.ask(0)
    await turns_of_the_loop()
    waiting = [asked.ask(number) for number in range(1, 4)]
    refused = asked.ask(4)
    with pytest.raises(Overloaded):
        await refused
    store.gate.set()
    assert await asyncio.gather(under_way, *waiting) == [0, 2, 4, 6]


async def test_a_batch_ends_before_it_gets_too_heavy_but_never_before_its_first_item() -> None:
    store = Store()
    store.gate.clear()
    asked: Gathering[int, int] = Gathering(
        store.run, batch_max=10, waiting_max=100, weigh=lambda number: number, weight_max=10, waiting_weight_max=72
    )
    answers = [asked.ask(0)]
    await turns_of_the_loop()
    answers += [asked.ask(number) for number in (4, 6, 1, 50, 9, 1, 1)]
    with pytest.raises(Overloaded):
        await asked.ask(1)  # 72 wait already
    store.gate.set()
    await asyncio.gather(*answers)
    assert await asked.ask(50) == 100, "what has been answered weighs nothing any more"
    del store.batches[-1]
    assert store.batches == [[0], [4, 6], [1], [50], [9, 1], [1]]


async def test_drain_returns_when_everything_that_was_asked_is_answered() -> None:
    store = Store()
    store.gate.clear()
    asked = gathering(store.run, batch_max=2, lanes=2)
    answers = [asked.ask(number) for number in range(9)]
    draining = asyncio.create_task(asked.drain())
    await turns_of_the_loop()
    assert not draining.done()
    store.gate.set()
    await draining
    assert all(answer.done() for answer in answers)


async def test_nobody_waits_for_a_batch_that_is_late_but_those_who_said_so() -> None:
    """Those in it do not know what becomes of them; those behind it were never sent; once it has ended all goes on."""
    gate = asyncio.Event()
    batches: list[list[str]] = []

    async def run(items: Sequence[str]) -> list[str]:
        batches.append(list(items))
        await gate.wait()
        return list(items)

    gathering = Gathering(run, batch_max=2, waiting_max=10, patience_s=0.01, patient=lambda item: item.startswith("patient"))
    asked = {name: gathering.ask(name) for name in ("first", "patient 1", "behind", "patient 2")}
    async with asyncio.timeout(10):
        await asyncio.wait([asked["first"], asked["behind"]])
        late = gathering.ask("while it is late")
        sent = {name: await is_late(future) for name, future in (asked | {"late": late}).items() if "patient" not in name}
        assert sent == {"first": True, "behind": False, "late": False}
        assert not asked["patient 1"].done()
        gate.set()
        assert await asked["patient 1"] == "patient 1"
        assert await asked["patient 2"] == "patient 2"
        assert await gathering.ask("afterwards") == "afterwards"
    assert batches == [["first", "patient 1"], ["patient 2"], ["afterwards"]]


async def is_late(future: "asyncio.Future[str]") -> bool:
    """Whether it was sent."""
    with pytest.raises(Late) as late:
        await future
    return late.value.sent


async def test_a_batch_is_of_no_call_so_that_no_callers_deadline_ends_it_for_the_others() -> None:
    calls: list[call.Call] = []

    async def run(items: Sequence[int]) -> Sequence[int | BaseException]:
        calls.append(call.current())
        return list(items)

    asked = gathering(run)

    async def hurried() -> int:
        call.enter(call.Call(call.Identity("ann"), "one", deadline=0.0))  # it has passed
        return await asked.ask(1)

    assert await asyncio.create_task(hurried()) == 1
    assert await asked.ask(2) == 2
    assert {one.identity.actor for one in calls} == {"system"}
    assert all(one.left_s() == float("inf") for one in calls)
