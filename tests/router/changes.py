"""The changes of a fake registry: a history by revision, told to who follows as ChangeService.Watch of the contract does."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from twofold.registry.v1 import change_pb2, change_pb2_grpc
from twofold_chassis import call
from twofold_chassis.revisions import Revision

RouterKey = tuple[str, str]
_REGISTERED_MS = 60_000
_REGISTERED_S = 3.0
_NOTHING = Revision(0, 0)


class Stream:
    """One that follows: who it is, how far it was told, and what it asked."""

    def __init__(self, router: RouterKey | None) -> None:
        self.router = router
        self.revision = 0
        self.pinged = 0
        self.answered = 0
        self.ending: change_pb2.WatchResyncReason.ValueType | None = None
        self.cut = False


class FakeChanges(change_pb2_grpc.ChangeServiceServicer):
    """Every change from revision 1 on, and knobs for what can become of a stream. Each change asks for an ack."""

    def __init__(self) -> None:
        self.epoch = 7
        self.streams: set[Stream] = set()
        self.opened: list[change_pb2.WatchOpen] = []
        self.registered: set[RouterKey] = set()
        self.acked: dict[RouterKey, Revision] = {}
        self.left: list[RouterKey] = []
        self.compacted = 0
        self._history: list[change_pb2.WatchChange] = []
        self._news = asyncio.Event()
        self.reset()

    def reset(self) -> None:
        """All knobs as in the beginning; the history goes on."""
        self.registers = True
        """Whether who opens a stream is registered."""
        self.opens = asyncio.Event()
        self.opens.set()
        self._told_max: int | None = None
        self._checks = True
        self.opened.clear()
        self.left.clear()
        self.wake()

    # What happens ----------------------------------------------------------------------------------------------

    @property
    def revision(self) -> Revision:
        return Revision(self.epoch, len(self._history))

    def change(self, *items: change_pb2.WatchItem) -> None:
        """One more revision, which changed these."""
        change = change_pb2.WatchChange(revision=len(self._history) + 1, tag=random.getrandbits(62), items=items, wait=True)
        change.change_time.GetCurrentTime()
        self._history.append(change)
        self.wake()

    async def applied(self) -> None:
        """Returns when every router that is registered has applied every change."""
        try:
            await self.until(lambda: not self._behind())
        except TimeoutError:
            raise AssertionError(f"at {self.revision} these have not applied it: {self._behind()}") from None

    def _behind(self) -> dict[RouterKey, Revision]:
        acked = {router: self.acked.get(router, _NOTHING) for router in self.registered}
        return {router: revision for router, revision in acked.items() if revision < self.revision}

    async def until(self, is_so: Any) -> None:
        """Returns when it is so; looked at whenever something happens here."""
        async with asyncio.timeout(20):
            while not is_so():
                await self._news.wait()

    # What can become of it -------------------------------------------------------------------------------------

    def hold_changes(self) -> None:
        """From now on no change is told; so nothing can be checked either that is behind one."""
        self._told_max = len(self._history)

    def hold_checkpoints(self) -> None:
        """From now on pings are not answered."""
        self._checks = False

    def go_on(self) -> None:
        """Everything is told again."""
        self._told_max, self._checks = None, True
        self.wake()

    def end_streams(self, why: change_pb2.WatchResyncReason.ValueType | None = None) -> None:
        """Ends what is open: with this reason, or without a word."""
        for stream in self.streams:
            stream.ending, stream.cut = why, why is None
        self.wake()

    def begin_epoch(self) -> None:
        """Another Postgres, or a rewritten past."""
        self.epoch += 1
        self.end_streams(change_pb2.WATCH_RESYNC_REASON_EPOCH)

    def unregister(self) -> None:
        """Nobody is registered any more, and nobody can be until `registers` is set again."""
        self.registers = False
        self.registered.clear()
        self.end_streams(change_pb2.WATCH_RESYNC_REASON_UNREGISTERED)

    def compact(self) -> None:
        """The past is not kept any more."""
        self.compacted = len(self._history)

    def wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # The rpc ---------------------------------------------------------------------------------------------------

    async def Watch(
        self, requests: AsyncIterator[change_pb2.WatchRequest], context: Any
    ) -> AsyncGenerator[change_pb2.WatchResponse, None]:
        opening = (await anext(requests)).open
        self.opened.append(opening)
        self.wake()
        await self.opens.wait()
        router = (opening.router.router_id, opening.router.incarnation) if opening.HasField("router") else None
        if router is not None and self.registers:
            self.registered.add(router)
        stream = Stream(router)
        start = self._start(opening)
        stream.revision = start.place.revision
        self.streams.add(stream)
        hearing = asyncio.create_task(self._hear(stream, requests))
        try:
            yield change_pb2.WatchResponse(start=start)
            async for told in self._told(stream):
                yield told
        finally:
            self.streams.discard(stream)
            asyncio.get_running_loop().call_later(_REGISTERED_S, self._expire, stream.router)
            hearing.cancel()
            await asyncio.wait([hearing])
            self.wake()

    def _expire(self, router: RouterKey | None) -> None:
        """Who has ended without a word is not waited for longer than that."""
        if router is not None and all(stream.router != router for stream in self.streams):
            self.registered.discard(router)
            self.wake()

    def _start(self, opening: change_pb2.WatchOpen) -> change_pb2.WatchStart:
        place = opening.place
        known = opening.HasField("place") and place.epoch == self.epoch and self._has(place)
        if known:
            return change_pb2.WatchStart(place=place, resumed=True)
        return change_pb2.WatchStart(place=self._place(self.compacted))

    def _has(self, place: change_pb2.WatchPlace) -> bool:
        return self.compacted <= place.revision <= len(self._history) and place == self._place(place.revision)

    def _place(self, revision: int) -> change_pb2.WatchPlace:
        tag = self._history[revision - 1].tag if revision else 0
        return change_pb2.WatchPlace(epoch=self.epoch, revision=revision, tag=tag)

    async def _told(self, stream: Stream) -> AsyncGenerator[change_pb2.WatchResponse, None]:
        while not stream.cut:
            news = self._news
            if stream.ending is not None:
                yield change_pb2.WatchResponse(resync=change_pb2.WatchResync(reason=stream.ending))
                return
            head = len(self._history) if self._told_max is None else self._told_max
            if stream.revision < head:
                yield change_pb2.WatchResponse(change=self._history[stream.revision])
                stream.revision += 1
                continue
            if self._checks and stream.revision == len(self._history) and stream.pinged != stream.answered:
                stream.answered = stream.pinged
                yield change_pb2.WatchResponse(checkpoint=self._checkpoint(stream))
                continue
            if news is self._news:
                await call.unless_draining(news.wait())

    def _checkpoint(self, stream: Stream) -> change_pb2.WatchCheckpoint:
        checkpoint = change_pb2.WatchCheckpoint(
            nonce=stream.answered,
            epoch=self.epoch,
            revision=stream.revision,
            registered_ms=_REGISTERED_MS if stream.router in self.registered else 0,
            routers=len(self.registered),
        )
        checkpoint.read_time.FromNanoseconds(time.time_ns())
        return checkpoint

    async def _hear(self, stream: Stream, requests: AsyncIterator[change_pb2.WatchRequest]) -> None:
        async for request in requests:
            if request.HasField("ping"):
                stream.pinged = request.ping.nonce
            elif stream.router is not None and request.HasField("ack"):
                self.acked[stream.router] = Revision(request.ack.epoch, request.ack.revision)
            elif stream.router is not None and request.HasField("leave"):
                self.registered.discard(stream.router)
                self.left.append(stream.router)
                stream.router = None
            self.wake()
