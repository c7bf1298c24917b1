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
from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import Refusal
from twofold_router import wire_peers as wire
from twofold_router.knowledge import Broken, Knowledge, OldPrimary

_SAID_MAX = 100
_OPENING_S = 5.0
_AGAIN_S = (0.02, 0.2)


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
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

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
            if boot_s() - began > 1:
                lost = False
            await asyncio.sleep(random.uniform(*_AGAIN_S))

    async def _stream(self) -> None:
        knowledge = self._knowledge
        knowledge.opened()
        call = self._stub.Watch(metadata=peers.metadata())
        said: asyncio.Queue[change_pb2.WatchRequest] = asyncio.Queue(_SAID_MAX)
        try:
            await call.write(change_pb2.WatchRequest(open=wire.opening(self._router, knowledge.place)))
            await self._hear(call, said, within_s=_OPENING_S)
            async with asyncio.TaskGroup() as tasks:
                saying = tasks.create_task(self._say(call, said))
                pinging = tasks.create_task(self._ping(said))
                try:
                    await self._hear_on(call, said)
                finally:
                    saying.cancel()
                    pinging.cancel()
        except* grpc.aio.AioRpcError as errors:
            raise peers.refusal_of("registry", _first(errors)) from None
        except* Broken as errors:
            raise _first(errors) from None
        except* TimeoutError as errors:
            raise _first(errors) from None
        finally:
            await self._leave(call)

    async def _hear_on(self, call: Any, said: "asyncio.Queue[change_pb2.WatchRequest]") -> None:
        checked = boot_s()
        while True:
            if await self._hear(call, said, within_s=self._silence_s - (boot_s() - checked)):
                checked = boot_s()

    async def _hear(self, call: Any, said: "asyncio.Queue[change_pb2.WatchRequest]", *, within_s: float) -> bool:
        """Takes one message in; True if it was a checkpoint. Raises Broken, TimeoutError."""
        async with asyncio.timeout(max(0.0, within_s)):
            told: Any = await call.read()
        if told is grpc.aio.EOF:
            raise Broken("the registry has ended it")
        kind = told.WhichOneof("told")
        knowledge = self._knowledge
        if kind == "start":
            knowledge.started(wire.place(told.start.place), resumed=told.start.resumed)
        elif kind == "change":
            change = told.change
            knowledge.changed(change.revision, change.tag, wire.changed_things(change))
            if change.wait:  # after it is applied, never before
                ack = change_pb2.WatchAck(epoch=knowledge.place.epoch, revision=change.revision)
                await said.put(change_pb2.WatchRequest(ack=ack))
        elif kind == "checkpoint":
            knowledge.checked(*wire.checkpoint(told.checkpoint))
            return True
        elif kind == "resync":
            raise Broken(change_pb2.WatchResyncReason.Name(told.resync.reason))
        return False

    async def _ping(self, said: "asyncio.Queue[change_pb2.WatchRequest]") -> None:
        while True:
            self._nonce += 1
            await said.put(change_pb2.WatchRequest(ping=change_pb2.WatchPing(nonce=self._nonce)))
            await asyncio.sleep(self._ping_s)

    async def _say(self, call: Any, said: "asyncio.Queue[change_pb2.WatchRequest]") -> None:
        while True:
            request = await said.get()
            if request.HasField("ping"):
                self._knowledge.pinged(request.ping.nonce, boot_s())  # before it is sent
            await call.write(request)

    async def _leave(self, call: Any) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling() and not call.done():  # this router ends
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                async with asyncio.timeout(0.5):
                    await call.write(change_pb2.WatchRequest(leave=change_pb2.WatchLeave()))
                    await call.done_writing()
        call.cancel()


def _told(error: BaseException) -> str:
    return error.message if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"


def _first(errors: BaseExceptionGroup[Any]) -> Any:
    return errors.exceptions[0] if not isinstance(errors.exceptions[0], BaseExceptionGroup) else _first(errors.exceptions[0])
