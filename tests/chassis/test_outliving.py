"""Work that outlives its caller: it ends as it would have, is bounded, and is waited for when the service ends."""

import asyncio
import gc
from typing import Any

import pytest

from twofold_chassis.outliving import Outliving
from twofold_chassis.refusals import Overloaded


class Work:
    """Ends when it may."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.done = 0

    async def __call__(self) -> int:
        await self.may_end.wait()
        self.done += 1
        return self.done


async def begun(outliving: Outliving, work: Work) -> "asyncio.Task[int]":
    caller = asyncio.create_task(outliving.do(work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return caller


async def test_work_ends_and_is_waited_for_though_its_caller_has_gone() -> None:
    outliving, work = Outliving("works", most=2), Work()
    caller = await begun(outliving, work)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    drained = asyncio.create_task(outliving.drain())
    await asyncio.sleep(0)
    assert not drained.done()
    work.may_end.set()
    await drained
    assert work.done == 1


async def test_more_than_there_is_room_for_is_refused_and_not_begun() -> None:
    outliving, work = Outliving("works", most=2), Work()
    callers = [await begun(outliving, work) for _ in range(2)]
    callers[0].cancel()  # its work goes on, and has its place
    with pytest.raises(Overloaded, match="too many works at the same time"):
        await outliving.do(work)
    work.may_end.set()
    assert await callers[1] == 2
    assert await outliving.do(work) == 3


async def test_what_fails_without_a_caller_is_not_told_to_the_loop() -> None:
    outliving = Outliving("works", most=1)
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("nobody hears it")

    with pytest.raises(ValueError, match="nobody hears it"):
        await outliving.do(fails)
    caller = asyncio.create_task(outliving.do(fails))
    await asyncio.sleep(0)
    caller.cancel()
    await outliving.drain()
    del caller
    gc.collect()
    assert told == []
