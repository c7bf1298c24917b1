"""The one connection to Redis: every reply reaches who asked for it, whatever happens around it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from twofold_chassis import redis_wire
from twofold_chassis.redis_wire import RedisUnavailable, RedisWire

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


class Server:
    """Answers ECHO as told: at once, later, never, or by hanging up."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                name, *arguments = await self._command(reader)
                await self.gate.wait()
                answer = arguments[0] if name == b"ECHO" else b"OK"
                writer.write(b"$%d\r\n%s\r\n" % (len(answer), answer))
        writer.close()

    async def _command(self, reader: asyncio.StreamReader) -> list[bytes]:
        parts = []
        for _ in range(int((await reader.readuntil(b"\r\n"))[1:])):
            size = int((await reader.readuntil(b"\r\n"))[1:])
            parts.append((await reader.readexactly(size + 2))[:-2])
        return parts

    def hang_up(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    yield server
    server.gate.set()
    server.hang_up()
    listening.close()


@contextlib.asynccontextmanager
async def wire(
    port: int, *, budget_s: float = 5.0, password: str | None = None
) -> AsyncIterator[tuple[RedisWire, list[bool]]]:
    told: list[bool] = []

    async def connect() -> Connection:
        connection = Connection(
            host="127.0.0.1", port=port, retry=Retry(NoBackoff(), 0), protocol=2, driver_info=None, password=password
        )
        await connection.connect()  # type: ignore[no-untyped-call]
        return connection

    made = RedisWire(connect, budget_s=budget_s, told=lambda answered, _: told.append(answered))
    yield made, told
    async with asyncio.timeout(10):
        await made.close()


async def test_replies_come_in_the_order_of_the_commands(server: Server) -> None:
    async with wire(server.port) as (sender, _):
        answers = await asyncio.gather(*(sender.send(("ECHO", f"{index}")) for index in range(500)))
        assert answers == [f"{index}".encode() for index in range(500)]
    assert server.connections == 1


async def test_each_command_keeps_its_own_budget_while_older_ones_are_unanswered(server: Server) -> None:
    """The clock was once set for the end of the silence only, and the next caller waited until then."""
    async with wire(server.port, budget_s=0.05) as (sender, told):
        assert await sender.send(("ECHO", "a")) == b"a"
        server.gate.clear()
        loop = asyncio.get_running_loop()
        for _ in range(4):
            started = loop.time()
            with pytest.raises(RedisUnavailable):
                await sender.send(("ECHO", "late"))
            assert loop.time() - started < 0.9  # 50 ms, and what a busy machine needs; the silence itself lasts a second
        assert told == [True] + [False] * 4


async def test_a_reply_that_comes_too_late_is_thrown_away_in_its_place(server: Server) -> None:
    async with wire(server.port, budget_s=0.05) as (sender, _):
        server.gate.clear()
        with pytest.raises(RedisUnavailable):
            await sender.send(("ECHO", "late"))
        server.gate.set()
        answers = await asyncio.gather(*(sender.send(("ECHO", f"{index}")) for index in range(5)), return_exceptions=True)
        for index, answer in enumerate(answers):
            assert answer == f"{index}".encode() or isinstance(answer, RedisUnavailable)


async def test_replies_of_a_connection_that_was_given_up_never_reach_those_who_ask_on_the_next(server: Server) -> None:
    """They lie in the buffer of the old one, its reader is awake already, and others wait by now."""
    async with wire(server.port) as (sender, _):
        assert await sender.send(("ECHO", "a")) == b"a"
        for _ in range(30):
            old = sender.send(("ECHO", "old"))
            for _ in range(3):
                await asyncio.sleep(0)
            connection = sender._connection
            assert connection is not None
            reader = connection._reader
            assert reader is not None
            reader.feed_data(b"$3\r\nold\r\n")  # arrives in the same turn of the loop in which …
            sender._lose("no answer for too long")  # … the connection is given up …
            fresh = sender.send(("ECHO", "new"))  # … and somebody asks again
            with pytest.raises(RedisUnavailable):
                await old
            assert await fresh == b"new"


async def test_what_cannot_be_packed_is_the_callers_error_alone(server: Server) -> None:
    async with wire(server.port) as (sender, _):
        before = sender.send(("ECHO", "before"))
        with pytest.raises((TypeError, UnicodeError)):
            await sender.send(("ECHO", None))  # type: ignore[arg-type]
        after = sender.send(("ECHO", "after"))
        assert (await before, await after) == (b"before", b"after")


async def test_a_connection_that_is_lost_fails_who_waits_and_the_next_opens_another(server: Server) -> None:
    async with wire(server.port) as (sender, _):
        await sender.send(("ECHO", "a"))
        server.gate.clear()
        waiting = [sender.send(("ECHO", f"{index}")) for index in range(3)]
        await asyncio.sleep(0)
        server.hang_up()
        assert all(isinstance(error, RedisUnavailable) for error in await asyncio.gather(*waiting, return_exceptions=True))
        server.gate.set()
        assert await sender.send(("ECHO", "b")) == b"b"
    assert server.connections == 2


async def test_closing_while_it_connects_ends(server: Server) -> None:
    """To somebody who accepts, and answers the password when nobody waits any more."""
    server.gate.clear()
    async with wire(server.port, budget_s=0.05, password="secret") as (sender, _):
        with pytest.raises(RedisUnavailable):
            await sender.send(("ECHO", "a"))
        asyncio.get_running_loop().call_later(0.1, server.gate.set)


async def test_what_waits_is_bounded_in_bytes_and_in_number(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_wire, "_UNSENT_BYTES_MAX", 50_000)
    monkeypatch.setattr(redis_wire, "_WAITING_MAX", 20)
    async with wire(server.port, budget_s=60) as (sender, _):
        for text, fitting in (("x" * 10_000, 4), ("x", 20)):
            answers = [sender.send(("ECHO", text)) for _ in range(100)]
            refused = [answer for answer in answers if answer.done()]
            assert len(answers) - len(refused) == fitting
            assert all(isinstance(answer.exception(), RedisUnavailable) for answer in refused)
            assert await asyncio.gather(*answers[:fitting]) == [text.encode()] * fitting


STEPS = st.lists(st.sampled_from(["send", "send", "send", "cancel", "stop", "go", "hang up", "wait", "lose"]), max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
async def test_whatever_happens_nobody_gets_the_reply_of_another(steps: list[str], server: Server) -> None:
    server.gate.set()
    async with wire(server.port, budget_s=0.2) as (sender, _):
        asked: list[tuple[str, asyncio.Future[object]]] = []
        for index, step in enumerate(steps):
            match step:
                case "send":
                    asked.append((f"{index}", sender.send(("ECHO", f"{index}"))))
                case "cancel" if asked:
                    asked[index % len(asked)][1].cancel()
                case "stop":
                    server.gate.clear()
                case "go":
                    server.gate.set()
                case "hang up":
                    server.hang_up()
                case "lose":
                    sender._lose("given up")
                case "wait":
                    for _ in range(index % 7):
                        await asyncio.sleep(0)
        server.gate.set()
        for text, answer in asked:
            await asyncio.wait([answer])
            if not answer.cancelled() and answer.exception() is None:
                assert answer.result() == text.encode()


def test_timers_of_the_loop_that_services_run_on_are_not_asked_when_they_ring() -> None:
    """uvloop's cannot say it if that is at once: a command sent just then was an error of ours."""
    uvloop = pytest.importorskip("uvloop")

    async def nowhere() -> Connection:
        raise ConnectionRefusedError

    async def send_two() -> list[BaseException | None]:
        wire = RedisWire(nowhere, budget_s=0, told=lambda answered, reason: None)
        futures = [wire.send(("PING",)), wire.send(("PING",))]
        await asyncio.wait(futures)
        await wire.close()
        return [future.exception() for future in futures]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert [type(error) for error in runner.run(send_two())] == [RedisUnavailable] * 2
