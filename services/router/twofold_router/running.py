"""Running turns: each in a task of its own, which nobody who listens can end by leaving, and what was told of it so far."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from twofold_chassis import call
from twofold_chassis.call import Call
from twofold_chassis.refusals import Cancelled, Draining, InvalidField, Overloaded, Reason, Refusal
from twofold_router.asks import Ask, Name
from twofold_router.turn_events import Calls, Completed, Delta, Event, Started, Waiting

# A listener that is behind is told so much at once.
_PIECE_BYTES_MAX = 64 * 1024
_KEPT_BYTES_MAX = 32 * 1024 * 1024
# Longer than any agent may take.
_RUN_S = 4000.0


class TurnCancelled(Cancelled):
    """Somebody has cancelled the turn."""

    reason = Reason.REASON_TURN_CANCELLED


class LeftAlone(TurnCancelled):
    """Nobody listened to it any more."""


class Run:
    """A turn that runs, or has ended a moment ago: what was told of it, for any number of listeners.

    Text is kept as one piece and told from where a listener is: whoever reads slowly gets larger pieces and holds nobody
    back, and the turn needs no more room than its answer may have.
    """

    def __init__(self, ask: Ask, left: Callable[["Run"], None]) -> None:
        self.ask = ask
        self.listeners = 0
        self.ended_at: float | None = None
        self.cause: Refusal | None = None
        self.refusal: Refusal | None = None
        self._left = left
        self._started: Started | None = None
        self._waiting: Waiting | None = None
        self._text = bytearray()
        self._last: list[Calls | Completed] = []
        self._news = asyncio.Event()
        self._over = asyncio.Event()
        self._stoppable: asyncio.Task[Any] | None = None
        self._alone: asyncio.TimerHandle | None = None

    # What the turn tells -------------------------------------------------------------------------------------------

    def tell(self, event: Started | Waiting | Calls | Completed) -> None:
        """Told to all who listen, and to who will."""
        if isinstance(event, Started):
            self._started = event
        elif isinstance(event, Waiting):
            self._waiting = event
        else:
            self._last.append(event)
        self._announce()

    def say(self, text: str) -> None:
        """The answer goes on."""
        self._text += text.encode()
        self._announce()

    def refuse(self, refusal: Refusal) -> None:
        """The turn ends without Completed."""
        self.refusal = refusal
        self._announce()

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._text.decode()

    @property
    def text_bytes(self) -> int:
        """How long the answer is so far."""
        return len(self._text)

    @property
    def kept_bytes(self) -> int:
        """How much room it takes once it has ended: what was asked, and what was answered."""
        ask = self.ask
        texts = [ask.message, ask.instructions, *(result.content for result in ask.results)]
        texts += [text for tool in ask.tools for text in (tool.name, tool.description, tool.parameters)]
        texts += [call.arguments for event in self._last if isinstance(event, Calls) for call in event.calls]
        return self.text_bytes + sum(len(text.encode()) for text in texts)

    @property
    def completed(self) -> bool:
        """Whether it came to its end."""
        return bool(self._last) and isinstance(self._last[-1], Completed)

    @property
    def told(self) -> bool:
        """Whether listeners know how it ended; the task may still have something to do."""
        return self.completed or self.refusal is not None

    # Ending it -----------------------------------------------------------------------------------------------------

    async def stoppable(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Does what `stop` may end. Raises the cause if it was."""
        if self.cause is not None:
            work.close()
            raise self.cause
        self._stoppable = asyncio.create_task(work)
        try:
            return await self._stoppable
        except asyncio.CancelledError:
            if self.cause is None:
                raise
            raise self.cause from None
        finally:
            self._stoppable.cancel()
            self._stoppable = None

    def stop(self, cause: Refusal) -> None:
        """Ends what is stoppable; what is behind that comes to its end."""
        if self.cause is None and not self.told:
            self.cause = cause
            if self._stoppable is not None:
                self._stoppable.cancel()

    def stop_unless_heard(self, within_s: float, cause: Refusal) -> None:
        """Ends it if nobody listens again within this time."""
        self._heard_again()
        self._alone = asyncio.get_running_loop().call_later(within_s, self.stop, cause)

    def _heard_again(self) -> None:
        if self._alone is not None:
            self._alone.cancel()
            self._alone = None

    async def over(self) -> None:
        """Returns when the turn is told and done with."""
        await self._over.wait()

    def ended(self) -> None:
        """Its task has ended."""
        self.ended_at = time.monotonic()
        self._heard_again()
        self._over.set()
        self._announce()

    # Listening -----------------------------------------------------------------------------------------------------

    def require_offset(self, offset: int) -> None:
        """Refuses what a caller cannot have got."""
        if offset > len(self._text) or not _is_boundary(self._text, offset):
            raise InvalidField(
                "text_offset", f"is {offset}; the answer has {len(self._text)} bytes so far, in whole characters"
            )

    async def events(self, offset: int = 0) -> AsyncGenerator[Event, None]:
        """Everything from the beginning, its text from `offset` on; then what comes. Raises what the turn ends with."""
        with self._listening():
            started, waiting, last = False, None, 0
            while True:
                news = self._news
                if not started and self._started is not None:
                    started = True
                    yield self._started
                elif self._waiting is not waiting and started:
                    waiting = self._waiting
                    assert waiting is not None
                    yield waiting
                elif offset < len(self._text):
                    piece = _piece(self._text, offset)
                    yield Delta(piece.decode(), offset)
                    offset += len(piece)
                elif last < len(self._last):
                    last += 1
                    yield self._last[last - 1]
                elif self.refusal is not None:
                    raise self.refusal.again()
                elif self.completed:
                    return
                else:
                    await news.wait()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        self.listeners += 1
        self._heard_again()
        try:
            yield
        finally:
            self.listeners -= 1
            if not self.listeners and not self.told:
                self._left(self)

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Runs:
    """The turns of this router: at most `turns_max` at once, and those that ended less than `kept_s` ago.

    A turn that nobody listens to any more is stopped after `detached_s`, unless it is to go on.
    """

    def __init__(
        self,
        *,
        turns_max: int,
        detached_s: float,
        kept_s: float,
        kept_max: int,
        gauge: Callable[[int], None],
        kept_bytes_max: int = _KEPT_BYTES_MAX,
    ) -> None:
        """Of what has ended, `kept_max` are kept at most, with questions and answers of `kept_bytes_max` together."""
        self._turns_max = turns_max
        self._detached_s = detached_s
        self._kept_s = kept_s
        self._kept_max = kept_max
        self._kept_bytes_max = kept_bytes_max
        self._kept_bytes = 0
        self._gauge = gauge
        self._running: dict[Name, Run] = {}
        self._ended: OrderedDict[Name, Run] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: Refusal | None = None

    def find(self, name: Name) -> Run | None:
        """The turn, if it runs here or has just ended."""
        self._forget()
        return self._running.get(name) or self._ended.get(name)

    def begin(self, ask: Ask, course: Callable[[Run], Coroutine[Any, Any, None]]) -> Run:
        """Starts the turn. It is of the current call, but not within its deadline."""
        if self._closing is not None:
            raise self._closing.again()
        if len(self._running) >= self._turns_max:
            raise Overloaded("too many turns at once in this process", retry_after_s=1.0)
        run = Run(ask, self._left)
        self._drop(ask.name)
        self._running[ask.name] = run
        self._gauge(len(self._running))
        task = asyncio.create_task(self._through(run, course))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    async def close(self) -> None:
        """Stops all turns that are not answered yet, and returns when each is done with."""
        self._closing = _draining()
        for run in self._running.values():
            run.stop(_draining())
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _through(self, run: Run, course: Callable[[Run], Coroutine[Any, Any, None]]) -> None:
        begun_by = call.current()
        call.enter(Call(begun_by.identity, begun_by.request_id, time.monotonic() + _RUN_S))
        try:
            await course(run)
        finally:
            del self._running[run.ask.name]
            if not run.told:  # whoever listens would wait for ever
                run.refuse(Refusal("an error of ours ended the turn", operation_id=run.ask.operation_id))
            run.ended()
            self._drop(run.ask.name)
            self._ended[run.ask.name] = run
            self._kept_bytes += run.kept_bytes
            self._gauge(len(self._running))
            self._forget()

    def _left(self, run: Run) -> None:
        if run.ask.keep_running or run.ended_at is not None:
            return
        if self._detached_s:
            run.stop_unless_heard(self._detached_s, _left_alone())
        else:
            run.stop(_left_alone())

    def _forget(self) -> None:
        now = time.monotonic()
        while self._ended:
            run = next(iter(self._ended.values()))
            assert run.ended_at is not None
            fits = len(self._ended) <= self._kept_max and self._kept_bytes <= self._kept_bytes_max
            if fits and now - run.ended_at < self._kept_s:
                return
            self._drop(run.ask.name)

    def _drop(self, name: Name) -> None:
        if (run := self._ended.pop(name, None)) is not None:
            self._kept_bytes -= run.kept_bytes


def _left_alone() -> LeftAlone:
    return LeftAlone("nobody listened to the turn any more")


def _draining() -> Draining:
    return Draining("this router is shutting down", retry_after_s=1.0)


def _is_boundary(text: bytearray, offset: int) -> bool:
    return offset == len(text) or text[offset] & 0xC0 != 0x80


def _piece(text: bytearray, offset: int) -> bytes:
    end = min(len(text), offset + _PIECE_BYTES_MAX)
    while not _is_boundary(text, end):
        end -= 1
    return bytes(text[offset:end])
