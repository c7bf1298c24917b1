"""What is known of the call that is being served: who calls, under which request id, until when.

It stands in a context variable that the server's interceptor sets, so that nouns and stores need no parameter for it
where they only pass it on.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, NamedTuple, TypeVar

from twofold_chassis import refusals

ACTOR_KEY = "twofold-actor"
REQUEST_ID_KEY = "x-request-id"

Value = TypeVar("Value")


class Identity(NamedTuple):
    """Who calls. `verified` is False while the name is only what the caller said of itself."""

    actor: str
    verified: bool = False


class Drain:
    """Whether a server has begun to end; and the waiting that ends with that."""

    def __init__(self) -> None:
        self.begun = False
        self._waiting: set[asyncio.Timeout] = set()

    def begin(self) -> None:
        """From now on nobody waits here any more."""
        self.begun = True
        now = asyncio.get_running_loop().time()
        for limit in self._waiting:
            if not limit.expired():
                limit.reschedule(now)

    async def cuts_short(self, waiting: Awaitable[Value]) -> Value:
        """What `waiting` returns. Raises Draining if the server begins to end before; what is there at once is had."""
        try:
            async with asyncio.timeout(0 if self.begun else None) as limit:
                self._waiting.add(limit)
                try:
                    return await waiting
                finally:
                    self._waiting.discard(limit)
        except TimeoutError:
            if not limit.expired():
                raise
        raise refusals.Draining("this server is shutting down and has ended the stream", retry_after_s=0.0)


_NEVER = Drain()


class Call(NamedTuple):
    """One call. `deadline` is a reading of time.monotonic(); `drain` tells of the end of the server that serves it.

    A tuple, as it is made for every call: in half the time of a frozen dataclass.
    """

    identity: Identity
    request_id: str
    deadline: float
    drain: Drain = _NEVER

    def left_s(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - time.monotonic())


_NOBODY = Call(identity=Identity("system", verified=True), request_id="", deadline=float("inf"))
_current: contextvars.ContextVar[Call] = contextvars.ContextVar("twofold_call", default=_NOBODY)


def current() -> Call:
    """The call that is being served; outside of any, the system's own."""
    return _current.get()


def enter(call: Call) -> None:
    """Makes `call` the current one of this task and of those it starts."""
    _current.set(call)


def begin_for_all(work: Coroutine[Any, Any, Value]) -> "asyncio.Task[Value]":
    """A task of no call: its deadline is not that of whoever happened to come first.

    For what a caller sets going and others wait for as well.
    """
    return asyncio.create_task(work, context=contextvars.Context())


def draining() -> bool:
    """Whether the server that serves this call has begun to end. A stream that could go on for ever ends itself then."""
    return current().drain.begun


async def unless_draining(waiting: Awaitable[Value]) -> Value:
    """What `waiting` returns; raises Draining, and cancels it, when the server begins to end before.

    For what a long stream waits for, so that its caller goes on elsewhere at once instead of being cut off at the end:

        while True:
            for change in await call.unless_draining(watch.next()):
                yield change

    Never around a `yield`: what happens there belongs to the edge.
    """
    return await current().drain.cuts_short(waiting)
