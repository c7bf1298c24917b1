"""Following the registry's changes: one stream at a time, opened anew wherever it is lost.

Losing it changes nothing of what is known: the lease simply runs out, and then the registry is asked for each answer.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from twofold.registry.v1 import change_pb2, change_pb2_grpc
from twofold_chassis import peers
from twofold_chassis.alongside import alongside
from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import Refusal
from twofold_router import wire_peers as wire
from twofold_router.knowledge import Broken, Knowledge, OldPrimary, Place

_SAID_MAX = 100
_OPENING_S = 5.0
_LEAVING_S = 0.5
_AGAIN_S = (0.02, 0.2)
_STEADY_S = 10.0


class Follower:
    """Keeps the router's knowledge up to date for as long as `following` runs.

    A ping each `ping_s`; without an answer for `silence_s` the stream counts as lost.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        knowledge: Knowledge,
        *,
        router_id: str,
        incarnation: str,
        ping_s: float,
        silence_s: float,
    ) -> None:
        self._stub = change_pb2_grpc.ChangeServiceStub(channel)
        self._knowledge = knowledge
        self._router = change_pb2.WatchRouter(router_id=router_id, incarnation=incarnation)
        self._ping_s = ping_s
        self._silence_s = silence_s
        self._nonce = 0
        self._logger = structlog.get_logger("twofold.following")

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follows until the block ends; then says that nothing will be answered any more."""
        async with alongside(self._follow()):
            yield

    async def _follow(self) -> None:
        lost = False
        while True:
            began = boot_s()
            try:
                await self._stream()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                # Whatever it was, the next stream must come: without one nobody would be answered from copies again.
                self._knowledge.lost(_told(error), boot_s())
                if not lost:
                    known = isinstance(error, Broken | Refusal | TimeoutError | grpc.aio.AioRpcError)
                    self._logger.warning(
                        "the stream of changes is lost", error=_told(error), exc_info=None if known else error
                    )
                    if isinstance(error, OldPrimary):
                        self._logger.error("an old Postgres answers the registry", error=str(error))
                lost = True
            else:
                lost = False
            if boot_s() - began > _STEADY_S:  # one that is lost again and again is told of once
                lost = False
            await asyncio.sleep(random.uniform(*_AGAIN_S))

    async def _stream(self) -> None:
        knowledge = self._knowledge
        knowledge.opened()
        call = self._stub.Watch(metadata=peers.metadata())
        heard = _Heard(call)
        said: asyncio.Queue[change_pb2.WatchRequest] = asyncio.Queue(_SAID_MAX)
        try:
            await call.write(change_pb2.WatchRequest(open=wire.opening(self._router, knowledge.place)))
            await self._hear(heard, said, within_s=_OPENING_S, first=True)
            async with asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(work) for work in (self._say(call, said), self._ping(said), self._until_old())]
                try:
                    await self._hear_on(heard, said)
                finally:
                    for task in beside:
                        task.cancel()
        except* grpc.aio.AioRpcError as errors:
            raise peers.refusal_of("registry", _first(errors)) from None
        except* Broken as errors:
            raise _first(errors) from None
        except* TimeoutError as errors:
            raise _first(errors) from None
        finally:
            await self._leave(call, heard)
            call.cancel()
            await heard.close()

    async def _hear_on(self, heard: "_Heard", said: "asyncio.Queue[change_pb2.WatchRequest]") -> None:
        began = checked = boot_s()
        while True:
            if await self._hear(heard, said, within_s=self._silence_s - (boot_s() - checked)):
                if checked == began:  # what was to be acknowledged on the stream before, or before this router was there
                    _ack(said, self._knowledge.place)
                checked = boot_s()

    async def _hear(
        self, heard: "_Heard", said: "asyncio.Queue[change_pb2.WatchRequest]", *, within_s: float, first: bool = False
    ) -> bool:
        """Takes one message in; True if it answers a ping. Raises Broken, TimeoutError."""
        async with asyncio.timeout(max(0.0, within_s)):
            told = await heard.next()
        if told is grpc.aio.EOF:
            raise Broken("the registry has ended it")
        kind = told.WhichOneof("told")
        knowledge = self._knowledge
        if first and kind not in ("start", "resync"):
            raise Broken(f"it begins with {kind}")
        if kind == "start":
            knowledge.started(wire.place(told.start.place), resumed=told.start.resumed)
        elif kind == "change":
            change = told.change
            knowledge.changed(change.revision, change.tag, wire.changed_things(change))
            if change.wait:  # after it is applied, never before
                _ack(said, knowledge.place)
        elif kind == "checkpoint":
            return knowledge.checked(*wire.checkpoint(told.checkpoint))
        elif kind == "resync":
            raise Broken(change_pb2.WatchResyncReason.Name(told.resync.reason))
        return False

    async def _until_old(self) -> None:
        await self._knowledge.until_old()
        raise Broken("the registry answers in a newer epoch")

    async def _ping(self, said: "asyncio.Queue[change_pb2.WatchRequest]") -> None:
        while True:
            self._nonce += 1
            _say_soon(said, change_pb2.WatchRequest(ping=change_pb2.WatchPing(nonce=self._nonce)))
            await asyncio.sleep(self._ping_s)

    async def _say(self, call: Any, said: "asyncio.Queue[change_pb2.WatchRequest]") -> None:
        while True:
            request = await said.get()
            if request.HasField("ping"):
                self._knowledge.pinged(request.ping.nonce, boot_s())  # before it is sent
            await call.write(request)

    async def _leave(self, call: Any, heard: "_Heard") -> None:
        """Says that nothing will be answered any more, if this router ends: else who revokes would wait for its lease."""
        task = asyncio.current_task()
        if task is None or not task.cancelling() or call.done():
            return
        self._nonce += 1
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(_LEAVING_S):
                await call.write(change_pb2.WatchRequest(leave=change_pb2.WatchLeave()))
                await call.write(change_pb2.WatchRequest(ping=change_pb2.WatchPing(nonce=self._nonce)))
                # What was said is dropped with a call that is cancelled too early: the answer tells that it was heard.
                while (told := await heard.next()) is not grpc.aio.EOF and told.checkpoint.nonce != self._nonce:
                    pass


class _Heard:
    """What the registry tells. Who gives up waiting for it does not end the call, as giving up `call.read` does."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._read: asyncio.Task[Any] | None = None

    async def next(self) -> Any:
        if self._read is None:
            self._read = asyncio.create_task(self._call.read())
        told = await asyncio.shield(self._read)
        self._read = None
        return told

    async def close(self) -> None:
        if self._read is not None:
            self._read.cancel()
            await asyncio.gather(self._read, return_exceptions=True)


def _ack(said: "asyncio.Queue[change_pb2.WatchRequest]", place: Place) -> None:
    _say_soon(said, change_pb2.WatchRequest(ack=change_pb2.WatchAck(epoch=place.epoch, revision=place.revision)))


def _say_soon(said: "asyncio.Queue[change_pb2.WatchRequest]", request: change_pb2.WatchRequest) -> None:
    try:
        said.put_nowait(request)
    except asyncio.QueueFull:
        raise Broken("the registry does not listen") from None


def _told(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the registry is silent"
    return error.message if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"


def _first(errors: BaseExceptionGroup[Any]) -> Any:
    return errors.exceptions[0] if not isinstance(errors.exceptions[0], BaseExceptionGroup) else _first(errors.exceptions[0])
