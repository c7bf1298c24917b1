"""The end of calls that brought no deadline: at the server's, a little late perhaps, never early."""

import asyncio
import time
from typing import Any

import pytest

from twofold_chassis.overdue import Overdue

WITHIN_S = 0.02


class Calls:
    """Tasks in line, and how each ended."""

    def __init__(self) -> None:
        self.overdue = Overdue(WITHIN_S)
        self.ended: list[tuple[str, bool]] = []

    def begin(self, name: str, *, due: float | None = None, within: Any = None) -> asyncio.Task[None]:
        async def serve() -> None:
            task = asyncio.current_task()
            assert task is not None
            self.overdue.join(task, time.monotonic() + WITHIN_S if due is None else due)
            try:
                await (within or asyncio.Event().wait())
            finally:
                self.ended.append((name, self.overdue.has_ended(task)))
                self.overdue.leave(task)
                assert not self.overdue.has_ended(task)

        return asyncio.create_task(serve())


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def test_who_is_due_is_ended_in_the_order_in_which_they_came_and_not_before(calls: Calls) -> None:
    began = time.monotonic()
    tasks = [calls.begin(name) for name in ("first", "second", "third")]
    async with asyncio.timeout(20):
        await asyncio.wait(tasks)
    assert time.monotonic() - began >= WITHIN_S
    assert calls.ended == [("first", True), ("second", True), ("third", True)]
    assert all(task.cancelled() for task in tasks)


async def test_who_comes_while_others_wait_has_all_of_its_time_and_no_more(calls: Calls) -> None:
    now = time.monotonic()
    calls.begin("first")
    second = calls.begin("second", due=now + 5 * WITHIN_S)
    last = calls.begin("last", due=now + 3600)
    async with asyncio.timeout(20):
        await asyncio.wait([second])
    assert time.monotonic() >= now + 5 * WITHIN_S
    assert not last.done()
    last.cancel()
    await asyncio.wait([last])
    assert calls.ended == [("first", True), ("second", True), ("last", False)]


async def test_who_has_left_is_not_ended(calls: Calls) -> None:
    async def leave() -> None:
        task = asyncio.current_task()
        assert task is not None
        calls.overdue.leave(task)
        await asyncio.Event().wait()

    left, slow = calls.begin("left", within=leave()), calls.begin("slow")
    async with asyncio.timeout(20):
        await asyncio.wait([slow])
    assert not left.done()
    left.cancel()
    await asyncio.wait([left])
    assert calls.ended == [("slow", True), ("left", False)]


async def test_there_is_one_timer_for_all_and_none_for_none(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), []
    later = loop.call_later
    calls.overdue = Overdue(3600)  # however slow the machine is, it does not run out meanwhile

    def call_later(*how: Any) -> asyncio.TimerHandle:
        if getattr(how[1], "__self__", None) is calls.overdue:  # others have timers in this loop, too
            timers.append(how[0])
        return later(*how)

    tasks = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_later", call_later)
        for number in range(50):
            tasks.append(calls.begin(str(number)))
            await asyncio.sleep(0)
    assert timers == [3600]
    calls.overdue.close()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert [is_ours for _, is_ours in calls.ended] == [False] * 50


async def test_after_the_close_nobody_is_ended(calls: Calls) -> None:
    task = calls.begin("one", due=0.0)
    await asyncio.sleep(0)
    calls.overdue.close()
    other = Calls()
    async with asyncio.timeout(20):
        await asyncio.wait([other.begin("another")])  # as long as the first would have had
    assert not task.done()
    task.cancel()
