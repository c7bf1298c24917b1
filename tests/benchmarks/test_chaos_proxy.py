"""The fault proxy must do to a connection what it says, and nothing else. A real server echoes on the other side."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from benchmarks.chaos.proxy import FaultProxy, Way
from twofold_cli.embedded.ports import LOOPBACK

WAIT_S = 30.0
# Long enough that something which passes would have passed; that nothing does cannot be waited for.
SILENCE_S = 0.15


@dataclass
class Echo:
    """A server that answers each line with the same line, and writes down what it heard."""

    name: bytes = b""
    heard: list[bytes] = field(default_factory=list)
    port: int = 0
    ended: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                self.heard.append(line)
                self.news.set()
                writer.write(self.name + line)
                await writer.drain()
        self.ended += 1
        writer.close()


@contextlib.asynccontextmanager
async def listening(echo: Echo) -> AsyncIterator[Echo]:
    server = await asyncio.start_server(echo.serve, LOOPBACK, 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with listening(Echo()) as server:
        yield server


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    made = FaultProxy(LOOPBACK, echo.port)
    await made.start()
    yield made
    await made.stop()


@dataclass
class Caller:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def say(self, line: bytes) -> None:
        self.writer.write(line)

    async def hear(self) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return await self.reader.readline()

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(SILENCE_S):
                await self.reader.readline()
        except TimeoutError:
            return True
        return False


Calls = Callable[[FaultProxy], Awaitable[Caller]]


@pytest.fixture
async def call() -> AsyncIterator[Calls]:
    callers: list[Caller] = []

    async def called(proxy: FaultProxy) -> Caller:
        callers.append(Caller(*await asyncio.open_connection(LOOPBACK, proxy.port)))
        return callers[-1]

    yield called
    for caller in callers:
        caller.writer.transport.abort()
        with contextlib.suppress(OSError):
            await caller.writer.wait_closed()


async def until_heard(echo: Echo, line: bytes) -> None:
    async with asyncio.timeout(WAIT_S):
        while line not in echo.heard:
            await echo.news.wait()
            echo.news.clear()


async def test_what_is_not_disturbed_passes_unchanged(proxy: FaultProxy, call: Calls) -> None:
    caller = await call(proxy)
    for length in (1, 1000, 60_000):
        line = b"x" * length + b"\n"
        caller.say(line)
        assert await caller.hear() == line


async def test_more_than_can_be_held_passes_when_the_other_side_reads(proxy: FaultProxy, call: Calls) -> None:
    caller = await call(proxy)
    lines = 400
    caller.say((b"y" * 60_000 + b"\n") * lines)
    for _ in range(lines):
        assert len(await caller.hear()) == 60_001


async def test_a_delay_takes_its_time_each_way_and_keeps_the_order(proxy: FaultProxy, call: Calls) -> None:
    caller = await call(proxy)
    proxy.delay(0.1)
    began = asyncio.get_running_loop().time()
    caller.say(b"one\n")
    caller.say(b"two\n")
    assert [await caller.hear(), await caller.hear()] == [b"one\n", b"two\n"]
    assert asyncio.get_running_loop().time() - began >= 0.2
    caller.say(b"three\n")
    await asyncio.sleep(0.05)
    await proxy.heal()
    caller.say(b"four\n")
    assert [await caller.hear(), await caller.hear()] == [b"three\n", b"four\n"]


async def test_a_black_hole_accepts_says_nothing_and_delivers_when_it_ends(
    proxy: FaultProxy, echo: Echo, call: Calls
) -> None:
    before = await call(proxy)
    before.say(b"hello\n")
    await before.hear()
    proxy.hold()
    during = await call(proxy)
    before.say(b"late\n")
    during.say(b"new\n")
    assert await before.hears_nothing()
    assert echo.heard == [b"hello\n"]
    await proxy.heal()
    assert (await before.hear(), await during.hear()) == (b"late\n", b"new\n")


async def test_a_caller_who_leaves_a_black_hole_is_missed_only_when_it_ends(
    proxy: FaultProxy, echo: Echo, call: Calls
) -> None:
    caller = await call(proxy)
    caller.say(b"hello\n")
    await caller.hear()
    proxy.hold()
    caller.say(b"last words\n")
    caller.writer.close()
    await caller.writer.wait_closed()
    await asyncio.sleep(SILENCE_S)
    assert (echo.heard, echo.ended) == ([b"hello\n"], 0)
    await proxy.heal()
    await until_heard(echo, b"last words\n")


async def test_one_way_lets_requests_pass_and_holds_answers(proxy: FaultProxy, echo: Echo, call: Calls) -> None:
    caller = await call(proxy)
    proxy.hold(Way.ANSWERS)
    caller.say(b"done\n")
    await until_heard(echo, b"done\n")
    assert await caller.hears_nothing()
    await proxy.heal()
    assert await caller.hear() == b"done\n"


async def test_the_other_way_lets_answers_pass_and_holds_requests(proxy: FaultProxy, echo: Echo, call: Calls) -> None:
    caller = await call(proxy)
    proxy.delay(0.05)
    caller.say(b"under way\n")
    await until_heard(echo, b"under way\n")
    proxy.hold(Way.REQUESTS)
    caller.say(b"held\n")
    assert await caller.hear() == b"under way\n"
    assert await caller.hears_nothing()
    assert echo.heard == [b"under way\n"]


async def test_a_swallowed_answer_is_lost_although_the_request_was_done(proxy: FaultProxy, echo: Echo, call: Calls) -> None:
    caller, other = await call(proxy), await call(proxy)
    proxy.swallow()
    caller.say(b"done\n")
    with pytest.raises(ConnectionResetError):
        await caller.hear()
    assert echo.heard == [b"done\n"]
    other.say(b"the next\n")
    assert await other.hear() == b"the next\n"


async def test_after_a_silently_swallowed_answer_the_connection_says_nothing_until_it_is_reset(
    proxy: FaultProxy, echo: Echo, call: Calls
) -> None:
    caller = await call(proxy)
    proxy.swallow(silent=True)
    caller.say(b"done\n")
    assert await caller.hears_nothing()
    caller.say(b"more\n")
    await until_heard(echo, b"more\n")
    assert await caller.hears_nothing()
    await proxy.heal()
    with pytest.raises(ConnectionResetError):
        await caller.hear()


async def test_a_cut_ends_connections_in_order_and_new_ones_are_taken(proxy: FaultProxy, call: Calls) -> None:
    caller = await call(proxy)
    caller.say(b"hello\n")
    await caller.hear()
    proxy.cut()
    assert await caller.hear() == b""
    following = await call(proxy)
    following.say(b"again\n")
    assert await following.hear() == b"again\n"


async def test_a_reset_is_seen_as_one_and_loses_what_was_held(proxy: FaultProxy, echo: Echo, call: Calls) -> None:
    caller = await call(proxy)
    caller.say(b"hello\n")
    await caller.hear()
    proxy.hold()
    caller.say(b"lost\n")
    assert await caller.hears_nothing()
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await caller.hear()
    await proxy.heal()
    following = await call(proxy)
    following.say(b"again\n")
    assert await following.hear() == b"again\n"
    assert echo.heard == [b"hello\n", b"again\n"]


async def test_a_proxy_that_refuses_keeps_what_it_has_and_takes_new_ones_after(proxy: FaultProxy, call: Calls) -> None:
    caller = await call(proxy)
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await call(proxy)
    caller.say(b"still\n")
    assert await caller.hear() == b"still\n"
    await proxy.heal()
    following = await call(proxy)
    following.say(b"again\n")
    assert await following.hear() == b"again\n"


async def test_who_is_led_to_another_server_loses_the_old_one(proxy: FaultProxy, call: Calls) -> None:
    async with listening(Echo(b"other ")) as other:
        caller = await call(proxy)
        caller.say(b"hello\n")
        assert await caller.hear() == b"hello\n"
        proxy.lead_to(LOOPBACK, other.port)
        with pytest.raises(ConnectionResetError):
            await caller.hear()
        following = await call(proxy)
        following.say(b"hello\n")
        assert await following.hear() == b"other hello\n"


async def test_a_server_that_is_not_there_is_felt_as_a_reset(proxy: FaultProxy, echo: Echo, call: Calls) -> None:
    gone = FaultProxy(LOOPBACK, echo.port)
    gone.lead_to(LOOPBACK, proxy.port)
    await gone.start()
    await proxy.refuse()
    caller = await call(gone)
    with pytest.raises(ConnectionResetError):
        await caller.hear()
    await gone.stop()
