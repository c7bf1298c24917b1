"""Work that ends with what it stands beside."""

import asyncio

import pytest

from twofold_chassis.alongside import alongside


async def test_it_has_ended_when_the_block_has() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # it takes its time
            ended.set()

    async with alongside(work()):
        await begun.wait()
    assert ended.is_set()


async def test_what_it_raised_is_not_lost() -> None:
    failed = asyncio.Event()

    async def work() -> None:
        failed.set()
        raise LookupError("a defect")

    with pytest.raises(LookupError, match="a defect"):
        async with alongside(work()):
            await failed.wait()


async def test_a_cancellation_that_comes_while_it_ends_is_not_lost() -> None:
    begun, ending = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.Event().wait()

    async def beside() -> None:
        async with alongside(work()):
            await begun.wait()

    task = asyncio.create_task(beside())
    await ending.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
