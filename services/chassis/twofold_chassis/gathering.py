"""Gathering: while one batch is under way, what arrives meanwhile becomes the next.

The idea is a database's group commit: under load a round trip is shared by all who wait for it, a lone caller waits for
nobody. Used for commits, for confirmations and for commands to Redis.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from twofold_chassis.refusals import Overloaded, Refusal

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Gathering(Generic[Item, Answer]):
    """Runs items in batches: at most `lanes` at a time, each of at most `batch_max` items and `weight_max` weight.

    `run` gets the items of a batch in order of arrival and returns one answer or exception for each; what it raises
    itself goes to every item of the batch. At most `waiting_max` items of `waiting_weight_max` together wait; more are
    refused as Overloaded. An item outlives its caller: cancelling the future does not take it out of its batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | BaseException]]],
        *,
        batch_max: int,
        waiting_max: int,
        lanes: int = 1,
        weigh: Callable[[Item], int] | None = None,
        weight_max: int = 0,
        waiting_weight_max: int = 0,
    ) -> None:
        self._run = run
        self._batch_max = batch_max
        self._waiting_max = waiting_max
        self._lanes = lanes
        self._weigh = weigh
        self._weight_max = weight_max
        self._waiting_weight_max = waiting_weight_max
        self._waiting_weight = 0
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        # Not len(_tasks): a lane that has just found nothing to do is still among them when its last caller, awake
        # already, asks again, and that item would wait for somebody else to come by.
        self._working = 0

    def ask(self, item: Item) -> "asyncio.Future[Answer]":
        """Puts the item into the batch that is forming; the future gets its answer, or Overloaded. Never raises."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        weight = self._weigh(item) if self._weigh is not None else 0
        if len(self._waiting) >= self._waiting_max or self._waiting_weight + weight > self._waiting_weight_max:
            _settle(future, Overloaded("too many calls wait for the same store", retry_after_s=0.2))
            return future
        self._waiting.append((item, future))
        self._waiting_weight += weight
        if self._working < self._lanes:
            self._working += 1
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return future

    def withdraw(self, future: "asyncio.Future[Answer]") -> bool:
        """Takes an item out again; False if its batch is under way (or done) already."""
        for place, (item, waiting) in enumerate(self._waiting):
            if waiting is future:
                del self._waiting[place]
                self._waiting_weight -= self._weigh(item) if self._weigh is not None else 0
                future.cancel()
                return True
        return False

    async def drain(self) -> None:
        """Returns when everything that was asked has its answer."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._answer(self._next_batch())
        finally:
            self._working -= 1

    async def _answer(self, batch: "list[tuple[Item, asyncio.Future[Answer]]]") -> None:
        try:
            answers = await self._run([item for item, _ in batch])
            if len(answers) != len(batch):
                raise AssertionError(f"{len(answers)} answers for {len(batch)} items")  # a defect: whose is whose?
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001  (handed on to each caller, whose interceptor judges it)
            for _, future in batch:
                _settle(future, error)
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                _settle(future, answer)

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        batch: list[tuple[Item, asyncio.Future[Answer]]] = []
        weight = 0
        while self._waiting and len(batch) < self._batch_max:
            if self._weigh is not None:
                following = self._weigh(self._waiting[0][0])
                if batch and weight + following > self._weight_max:
                    break
                weight += following
            batch.append(self._waiting.popleft())
        self._waiting_weight -= weight
        return batch


def _settle(future: "asyncio.Future[Answer]", answer: Answer | BaseException) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer.again() if isinstance(answer, Refusal) else answer)
        future.exception()  # its caller may be gone: that is no "exception was never retrieved"
    else:
        future.set_result(answer)
