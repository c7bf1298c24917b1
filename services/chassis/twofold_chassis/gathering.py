"""Gathering: while one batch is under way, what arrives meanwhile becomes the next.

The idea is a database's group commit: under load a round trip is shared by all who wait for it, a lone caller waits for
nobody. Used for commits, for confirmations and for commands to Redis.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from twofold_chassis import call
from twofold_chassis.refusals import Overloaded, Refusal

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Late(Exception):  # noqa: N818  (a state, not an error)
    """A batch takes too long. `sent`: the item is in it, and what becomes of it is not known; else it was withdrawn."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("the batch takes too long")
        self.sent = sent


class Gathering(Generic[Item, Answer]):
    """Runs items in batches: at most `lanes` at a time, each of at most `batch_max` items and `weight_max` weight.

    `run` gets the items of a batch in order of arrival and returns one answer or exception for each; what it raises
    itself goes to every item of the batch. At most `waiting_max` items of `waiting_weight_max` together wait; more are
    refused as Overloaded. An item outlives its caller: cancelling the future does not take it out of its batch. A batch is
    of no call: nobody's deadline ends it for the others.

    With `patience_s` nobody waits for a batch that takes longer: those in it, those who wait for a lane while all lanes are
    so late, and those who come while they are, get Late; but for items that are `patient`. How long it takes until a batch
    forms says nothing of the store behind it, and does not count.
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
        patience_s: float | None = None,
        patient: Callable[[Item], bool] = lambda item: False,
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
        self._patience_s = patience_s
        self._patient = patient
        self._late = 0
        # Not len(_tasks): a lane that has just found nothing to do is still among them when its last caller, awake
        # already, asks again, and that item would wait for somebody else to come by.
        self._working = 0

    def ask(self, item: Item) -> "asyncio.Future[Answer]":
        """Puts the item into the batch that is forming; the future gets its answer, or Overloaded. Never raises."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        weight = self._weigh(item) if self._weigh is not None else 0
        if self._late >= self._lanes and not self._patient(item):
            _settle(future, Late(sent=False))
            return future
        if len(self._waiting) >= self._waiting_max or self._waiting_weight + weight > self._waiting_weight_max:
            _settle(future, Overloaded("too many calls wait for the same store", retry_after_s=0.2))
            return future
        self._waiting.append((item, future))
        self._waiting_weight += weight
        if self._working < self._lanes:
            self._working += 1
            task = call.begin_for_all(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return future

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
        watch = _Watch(self, batch) if self._patience_s is not None else None
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
        finally:
            if watch is not None:
                watch.end()

    def _give_up(self, batch: "list[tuple[Item, asyncio.Future[Answer]]]") -> None:
        """A batch is late: nobody who is not patient waits for it, or for the lanes if all are."""
        self._late += 1
        for item, future in batch:
            if not self._patient(item):
                _settle(future, Late(sent=True))
        if self._late < self._lanes:
            return
        waiting, self._waiting = self._waiting, deque()
        for item, future in waiting:
            if self._patient(item):
                self._waiting.append((item, future))
            else:
                self._waiting_weight -= self._weigh(item) if self._weigh is not None else 0
                _settle(future, Late(sent=False))

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


class _Watch(Generic[Item, Answer]):
    """Looks at the clock for one batch."""

    def __init__(self, gathering: Gathering[Item, Answer], batch: "list[tuple[Item, asyncio.Future[Answer]]]") -> None:
        self._gathering = gathering
        self._batch = batch
        self._is_late = False
        self._loop = asyncio.get_running_loop()
        assert gathering._patience_s is not None
        self._handle = self._loop.call_later(gathering._patience_s, self._look)

    def end(self) -> None:
        """The batch has its answers."""
        self._handle.cancel()
        self._gathering._late -= self._is_late

    def _look(self) -> None:
        # Answers that have arrived are handed out before anybody is told that they have not: it may be us who are late.
        self._handle = self._loop.call_later(0, self._look_again)

    def _look_again(self) -> None:
        self._is_late = True
        self._gathering._give_up(self._batch)


def _settle(future: "asyncio.Future[Answer]", answer: Answer | BaseException) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer.again() if isinstance(answer, Refusal) else answer)
        future.exception()  # its caller may be gone: that is no "exception was never retrieved"
    else:
        future.set_result(answer)
