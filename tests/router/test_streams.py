"""One stream after the other: what is believed of them, when they are given up, and what is left of them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from twofold.registry.v1 import change_pb2 as pb
from twofold.registry.v1 import change_pb2_grpc
from twofold_router.following import Follower
from twofold_router.knowledge import Knowledge

EPOCH = 7
Story = Callable[["Stream"], Awaitable[None]]


class Stream:
    """A stream as the registry sees it."""

    def __init__(self, requests: AsyncIterator[pb.WatchRequest], told: "asyncio.Queue[pb.WatchResponse | None]") -> None:
        self._requests = requests
        self._told = told

    async def hear(self, kind: str) -> Any:
        async for request in self._requests:
            if request.WhichOneof("command") == kind:
                return getattr(request, kind)
        raise AssertionError(f"it ended without {kind}")

    def start(self, revision: int, *, epoch: int = EPOCH, resumed: bool = False) -> None:
        place = pb.WatchPlace(epoch=epoch, revision=revision, tag=1)
        self.tell(start=pb.WatchStart(place=place, resumed=resumed))

    def change(self, revision: int) -> None:
        item = pb.WatchItem(kind=pb.WATCH_ITEM_KIND_USER, workspace_id="ws", user_id="ada")
        self.tell(change=pb.WatchChange(revision=revision, tag=1, items=[item], wait=True))

    def check(self, nonce: int, revision: int) -> None:
        self.tell(checkpoint=pb.WatchCheckpoint(nonce=nonce, epoch=EPOCH, revision=revision, registered_ms=60_000))

    def tell(self, **told: Any) -> None:
        self._told.put_nowait(pb.WatchResponse(**told))


class Told(change_pb2_grpc.ChangeServiceServicer):
    """A registry that tells each stream its story, and then nothing more; the last story is told again and again."""

    def __init__(self, *stories: Story) -> None:
        self._stories = stories
        self.opened: list[pb.WatchOpen] = []
        self._news = asyncio.Event()

    async def came(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.opened) < count:
                await self._news.wait()

    async def ListRouters(self, request: pb.ListRoutersRequest, context: Any) -> pb.ListRoutersResponse:
        raise AssertionError("a router does not ask for the others")

    async def Watch(self, requests: AsyncIterator[pb.WatchRequest], context: Any) -> AsyncGenerator[pb.WatchResponse, None]:
        told: asyncio.Queue[pb.WatchResponse | None] = asyncio.Queue()
        stream = Stream(requests, told)
        self.opened.append(await stream.hear("open"))
        self._news.set()
        self._news = asyncio.Event()
        story = self._stories[min(len(self.opened), len(self._stories)) - 1]
        telling: asyncio.Task[None] = asyncio.create_task(story(stream))  # type: ignore[arg-type]
        try:
            while (one := await told.get()) is not None:
                yield one
        finally:
            telling.cancel()
            await asyncio.wait([telling])


@contextlib.asynccontextmanager
async def following(told: Told, *, silence_s: float = 60.0) -> AsyncIterator[Knowledge]:
    server = grpc.aio.server()
    change_pb2_grpc.add_ChangeServiceServicer_to_server(told, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    knowledge = Knowledge(lease_s=60.0)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            follower = Follower(channel, knowledge, router_id="r", incarnation="i", ping_s=0.02, silence_s=silence_s)
            async with follower.following():
                yield knowledge
    finally:
        await server.stop(0)


async def usual(stream: Stream) -> None:
    stream.start(10)
    while True:
        stream.check((await stream.hear("ping")).nonce, 10)


async def until_known(knowledge: Knowledge) -> None:
    await knowledge.until_known(20)
    assert knowledge.is_known


async def test_a_change_is_acknowledged_after_it_is_applied() -> None:
    acked: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

    async def story(stream: Stream) -> None:
        stream.start(10)
        stream.change(11)
        ack = await stream.hear("ack")
        acked.put_nowait((ack.revision, knowledge.place.revision))

    async with following(Told(story)) as knowledge:
        assert await asyncio.wait_for(acked.get(), 20) == (11, 11)


async def test_who_has_come_back_acknowledges_what_it_knows() -> None:
    acked: asyncio.Queue[int] = asyncio.Queue()

    async def story(stream: Stream) -> None:
        stream.start(10)
        stream.check((await stream.hear("ping")).nonce, 10)
        acked.put_nowait((await stream.hear("ack")).revision)

    async with following(Told(story)):
        assert await asyncio.wait_for(acked.get(), 20) == 10


async def test_a_stream_that_does_not_begin_with_its_beginning_is_not_believed() -> None:
    async def no_start(stream: Stream) -> None:
        stream.change(0)
        stream.change(1)

    told = Told(no_start, usual)
    async with following(told) as knowledge:
        await told.came(2)
        await until_known(knowledge)
        assert knowledge.place.revision == 10


@pytest.mark.parametrize("loss", ["a change", "its last change", "nothing but a ping of another stream"])
async def test_what_was_lost_on_the_way_ends_the_stream(loss: str) -> None:
    async def story(stream: Stream) -> None:
        stream.start(10)
        ping = await stream.hear("ping")
        if loss == "a change":
            stream.change(12)
        elif loss == "its last change":
            stream.check(ping.nonce, 11)
        else:
            stream.check(ping.nonce + 1000, 10)
            stream.tell(resync=pb.WatchResync(reason=pb.WATCH_RESYNC_REASON_SLOW))

    async def never(stream: Stream) -> None:
        stream.start(10, resumed=True)

    told = Told(story, never)
    async with following(told) as knowledge:
        await told.came(2)
        assert (told.opened[1].place.epoch, told.opened[1].place.revision) == (EPOCH, 10)
        assert not knowledge.is_known


async def test_checkpoints_that_answer_no_ping_are_silence() -> None:
    async def deaf(stream: Stream) -> None:
        stream.start(10)
        while True:
            stream.check(0, 10)
            await asyncio.sleep(0.01)

    told = Told(deaf)
    async with following(told, silence_s=0.1):
        await told.came(2)


async def test_a_stream_of_an_epoch_that_has_passed_is_given_up() -> None:
    told = Told(usual)
    async with following(told) as knowledge:
        await until_known(knowledge)
        knowledge.answered_in(EPOCH + 1)
        await told.came(3)  # and again, for as long as an old Postgres answers it


async def test_what_is_lost_again_and_again_is_told_of_once_and_leaves_nothing_behind() -> None:
    async def broken(stream: Stream) -> None:
        stream.tell(resync=pb.WatchResync(reason=pb.WATCH_RESYNC_REASON_SLOW))

    told = Told(broken)
    with capture_logs() as logs:
        async with following(told):
            await told.came(3)
            before = len(asyncio.all_tasks())
            await told.came(12)
            assert len(asyncio.all_tasks()) <= before + 4
    told_of = [line["event"] for line in logs if line["log_level"] in ("warning", "error")]
    assert told_of == ["the stream of changes is lost"]
