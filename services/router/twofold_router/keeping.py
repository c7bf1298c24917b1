"""Keeping: work that goes on when its caller has gone, held by the app and waited for at its end."""

import asyncio
import time
from collections.abc import Coroutine, Hashable
from typing import Any, TypeVar

import structlog

from twofold_chassis import call
from twofold_chassis.call import Call
from twofold_chassis.refusals import Reason, Refusal

Result = TypeVar("Result")


class Keeping:
    """Tasks that outlive the calls that started them. Each has `limit_s`, whatever the caller's deadline was."""

    def __init__(self, *, limit_s: float) -> None:
        self._limit_s = limit_s
        self._tasks: set[asyncio.Task[Any]] = set()
        self._named: dict[Hashable, asyncio.Task[Any]] = {}

    def start(self, work: Coroutine[Any, Any, Result], *, name: Hashable = None) -> asyncio.Task[Result]:
        """Begins the work for the current call. Wait for it with asyncio.shield, so that leaving does not end it."""
        task = asyncio.create_task(self._within_limit(work))
        self._tasks.add(task)
        if name is not None:
            self._named[name] = task
        task.add_done_callback(lambda done: self._done(name, done))
        return task

    async def settled(self, name: Hashable) -> None:
        """Returns when the work that was started last under this name has ended, however it did."""
        if (task := self._named.get(name)) is not None:
            await asyncio.wait([task])

    async def drain(self) -> None:
        """Returns when everything that was started is done."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _within_limit(self, work: Coroutine[Any, Any, Result]) -> Result:
        begun_by = call.current()
        call.enter(Call(begun_by.identity, begun_by.request_id, time.monotonic() + self._limit_s))
        return await work

    def _done(self, name: Hashable, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if self._named.get(name) is task:
            del self._named[name]
        error = None if task.cancelled() else task.exception()
        if error is not None:  # its caller may be gone: then nobody else would ever hear of it
            reason = Reason.Name(error.reason) if isinstance(error, Refusal) else type(error).__name__
            structlog.get_logger("twofold.turn").warning("turn not kept", reason=reason)
