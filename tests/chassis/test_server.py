"""The edge and the server: what a caller gets, whatever happens inside, and how a server begins and ends."""

import asyncio
import contextlib
import os
import socket
import sys
import urllib.request
from asyncio.subprocess import PIPE
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from tests.chassis.serving import NAME, Service, bytes_of, do, gather, running, stream, talk, text_of, trailing
from twofold_chassis import call, refusals
from twofold_chassis.call import Drain
from twofold_chassis.start import StartError

KINDS = ["unary", "stream", "gather", "talk"]


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refusal_becomes_its_status_with_its_details(service: Service, kind: str) -> None:
    async with running(service) as (_, channel):
        error = await failure(channel, kind, "refuse")
    assert (error.code(), error.details()) == (grpc.StatusCode.ABORTED, "somebody holds it")
    assert trailing(error)["twofold-reason"] == "REASON_BUSY"
    assert "google.rpc.RetryInfo" in repr(trailing(error)["grpc-status-details-bin"])
    assert trailing(error)["x-request-id"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("request_", ["fail", "timeout"])
async def test_whatever_is_unexpected_is_internal_with_an_id_that_stands_in_the_log_and_no_text_of_its_own(
    service: Service, kind: str, request_: str
) -> None:
    with capture_logs() as logs:
        async with running(service) as (_, channel):
            error = await failure(channel, kind, request_)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert trailing(error)["twofold-reason"] == "REASON_INTERNAL"
    assert "secret" not in repr(trailing(error)) + str(error.details())
    (defect,) = [entry for entry in logs if entry["event"] == "defect"]
    assert defect["error_id"] in str(error.details())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("request_", "entry"),
    [
        ("refuse", {"code": "ABORTED", "reason": "REASON_BUSY", "thread_id": "t"}),
        ("invalid", {"code": "INVALID_ARGUMENT", "reason": "REASON_INVALID_FIELD", "field": "messages[3].labels[…]"}),
    ],
)
async def test_the_log_says_why_a_call_was_refused_and_of_which_ids_and_nothing_a_caller_wrote(
    service: Service, kind: str, request_: str, entry: dict[str, str]
) -> None:
    with capture_logs() as logs:
        async with running(service) as (_, channel):
            await failure(channel, kind, request_)
    (line,) = [line for line in logs if line["event"] == "call"]
    assert {key: line.get(key) for key in entry} == entry
    assert "secret" not in repr(logs)


async def test_the_log_line_of_a_defect_names_its_error_id(service: Service) -> None:
    with capture_logs() as logs:
        async with running(service) as (_, channel):
            error = await failure(channel, "unary", "fail")
    (line,) = [line for line in logs if line["event"] == "call"]
    assert line["reason"] == "REASON_INTERNAL"
    assert line["error_id"] in str(error.details())


async def failure(channel: grpc.aio.Channel, kind: str, request: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await called(channel, kind, request, timeout=20)
    return told.value


def begun(channel: grpc.aio.Channel, kind: str, request: str, **how: Any) -> Any:
    """A call of that kind, whose last or only request is `request`."""
    match kind:
        case "unary":
            return do(channel)(request, **how)
        case "stream":
            return stream(channel)(request, **how)
        case "gather":
            return gather(channel)(iter(["first", request]), **how)
        case _:
            return talk(channel)(iter(["first", request]), **how)


async def called(channel: grpc.aio.Channel, kind: str, request: str, **how: Any) -> Any:
    calling = begun(channel, kind, request, **how)
    return await (calling if kind in ("unary", "gather") else collected(calling))


async def test_a_call_knows_who_calls_and_by_which_id_and_until_when(service: Service) -> None:
    async with running(service, deadline_s=7) as (_, channel):
        metadata = (("twofold-actor", "ada"), ("x-request-id", "r-1"))
        actor, verified, request_id, left = (await do(channel)("context", metadata=metadata)).split(" ")
        assert (actor, verified, request_id) == ("ada", "False", "r-1")
        assert 0 < float(left) <= 8  # a call without a deadline gets one
        actor, _, request_id, left = (await do(channel)("context", timeout=3)).split(" ")
        assert actor == "anonymous"
        assert len(request_id) == 36
        assert 0 < float(left) <= 4
        empty = (("twofold-actor", ""), ("x-request-id", ""))
        actor, _, request_id, _ = (await do(channel)("context", metadata=empty)).split(" ")
        assert (actor, len(request_id)) == ("anonymous", 36)


@pytest.mark.parametrize("key", ["twofold-actor", "x-request-id"])
async def test_metadata_of_ours_that_breaks_its_rule_is_refused_and_not_replaced(service: Service, key: str) -> None:
    async with running(service) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await do(channel)("ok", metadata=((key, "x" * 256),))
        assert await do(channel)("ok", metadata=((key, "x" * 255),)) == "ok"
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailing(told.value)["twofold-reason"] == "REASON_INVALID_FIELD"
    assert str(told.value.details()).startswith(f"metadata[{key}]: ")
    assert len(trailing(told.value)["x-request-id"]) == 36


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_without_a_deadline_ends_at_the_servers(service: Service, kind: str) -> None:
    async with running(service, deadline_s=0.05, stream_deadline_s=0.05) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await called(channel, kind, "wait")
    assert told.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert trailing(told.value)["twofold-reason"] == "REASON_DEADLINE"


async def test_a_call_with_a_deadline_of_its_own_keeps_it_while_those_without_end_at_the_servers(service: Service) -> None:
    async with running(service, deadline_s=0.05) as (_, channel):
        long = do(channel)("wait", timeout=30)
        await service.begun.wait()
        error = await failure_of(do(channel)("wait"))
        assert (error.code(), error.details()) == (grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline ran out")
        assert not long.done()
        service.gate.set()
        assert await long == "wait"
        assert (await failure_of(do(channel)("refuse"))).code() is grpc.StatusCode.ABORTED


async def test_a_method_that_is_not_there_is_unimplemented(service: Service) -> None:
    async with running(service) as (_, channel):
        error = await failure_of(channel.unary_unary(f"/{NAME}/Nothing", bytes_of, text_of)(""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def failure_of(calling: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await calling
    return told.value


async def collected(answers: Any) -> list[str]:
    return [answer async for answer in answers]


async def test_a_stream_is_what_its_handler_yields(service: Service) -> None:
    async with running(service) as (_, channel):
        assert await collected(stream(channel)("end")) == ["0", "1", "2", "end"]


async def test_streams_of_requests_reach_their_handler_one_by_one(service: Service) -> None:
    async with running(service) as (_, channel):
        assert await gather(channel)(iter(["a", "b", "c"])) == "a b c"
        assert await gather(channel)(iter([])) == "a b c"
        both = talk(channel)()
        for text in ("a", "b"):
            await both.write(text)
            assert await both.read() == text, "answered before the next is said"
        await both.done_writing()
        assert (await both.read(), await both.read()) == ("bye", grpc.aio.EOF)


async def test_what_streams_is_known_by_its_caller_too(service: Service) -> None:
    metadata = (("twofold-actor", "ada"), ("x-request-id", "r-1"))
    async with running(service, stream_deadline_s=7) as (_, channel):
        actor, _, request_id, left = (await gather(channel)(iter(["context"]), metadata=metadata)).split(" ")
    assert (actor, request_id) == ("ada", "r-1")
    assert 0 < float(left) <= 7


async def test_a_request_of_a_stream_that_cannot_be_read_is_refused(service: Service) -> None:
    async with running(service) as (_, channel):
        error = await failure(channel, "gather", "no message")
    assert (error.code(), trailing(error)["twofold-reason"]) == (grpc.StatusCode.INVALID_ARGUMENT, "REASON_INVALID_FIELD")
    assert "secret" not in str(error.details())


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_call_is_cancelled_inside(service: Service, kind: str) -> None:
    async with running(service) as (_, channel):
        calling = begun(channel, kind, "wait")
        await service.begun.wait()
        calling.cancel()
        async with asyncio.timeout(20):
            await service.cancelled.wait()


async def test_requests_of_a_caller_that_has_gone_never_look_like_all_of_them(service: Service) -> None:
    """gRPC ends them as if they were: of a cancelled import, the half would be taken for the whole."""
    with capture_logs() as logs:
        async with running(service) as (_, channel):
            for count in range(1, 21):
                calling = gather(channel)()
                await calling.write("a")
                async with asyncio.timeout(20):
                    while len(service.gathered) < count:  # noqa: ASYNC110
                        await asyncio.sleep(0)
                    calling.cancel()
                    while len([line for line in logs if line["event"] == "call"]) < count:  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
            assert not service.whole.is_set()
            await gather(channel)(iter(["a"]))
            assert service.whole.is_set()
    assert [line["code"] for line in logs if line["event"] == "call"][:20] == ["CANCELLED"] * 20


async def test_a_stream_that_waits_ends_when_the_server_begins_to(service: Service) -> None:
    async with running(service, drain_s=30) as (server, _):
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.enable_retries", 0)])
        watch = stream(channel, "Watch")("")
        assert await watch.read() == "begun"
        await service.begun.wait()
        loop = asyncio.get_running_loop()
        started = loop.time()
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await watch.read()
    assert loop.time() - started < 20, "it did not wait for the end of the time to drain"
    await channel.close()
    assert service.cancelled.is_set()
    assert (told.value.code(), trailing(told.value)["twofold-reason"]) == (grpc.StatusCode.UNAVAILABLE, "REASON_DRAINING")


async def test_what_waits_before_a_drain_keeps_its_own_errors_and_what_is_there_at_once_is_had() -> None:
    drain = Drain()
    call.enter(call.current()._replace(drain=drain))

    async def fail() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await call.unless_draining(fail())
    waiting = asyncio.create_task(call.unless_draining(asyncio.Event().wait()))
    await asyncio.sleep(0)
    assert not call.draining()
    drain.begin()
    with pytest.raises(refusals.Draining):
        await waiting
    assert call.draining()
    queue: asyncio.Queue[str] = asyncio.Queue()
    queue.put_nowait("ready")
    assert await call.unless_draining(queue.get()) == "ready"
    with pytest.raises(refusals.Draining):
        await call.unless_draining(queue.get())


async def test_a_server_that_ends_lets_running_calls_finish_and_refuses_new_ones(service: Service) -> None:
    async with running(service, drain_s=30) as (server, _):
        waiting, late = [
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.enable_retries", 0)]) for _ in range(2)
        ]
        health: Any = health_pb2_grpc.HealthStub(late)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        slow = do(waiting)("wait")
        await service.begun.wait()

        async def refused_then_released() -> grpc.aio.AioRpcError:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            while True:
                try:
                    await do(late)("ok")
                except grpc.aio.AioRpcError as error:
                    service.gate.set()
                    return error

        ending = asyncio.create_task(refused_then_released())
    assert await slow == "wait"
    error = await ending
    assert (error.code(), trailing(error)["twofold-reason"]) == (grpc.StatusCode.UNAVAILABLE, "REASON_DRAINING")
    watch.cancel()
    for channel in (waiting, late):
        await channel.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_what_does_not_finish_within_the_drain_time_is_cut_off_and_told_why(service: Service, kind: str) -> None:
    with capture_logs() as logs:
        async with running(service, drain_s=0.05) as (server, _):
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.enable_retries", 0)])
            other = asyncio.create_task(failure(channel, kind, "wait"))
            await service.begun.wait()
    error = await other
    await channel.close()
    assert service.cancelled.is_set()
    assert (error.code(), trailing(error)["twofold-reason"]) == (grpc.StatusCode.UNAVAILABLE, "REASON_DRAINING")
    assert "UNKNOWN" in repr(trailing(error)["grpc-status-details-bin"]), "it may have done its work"
    (line,) = [line for line in logs if line["event"] == "call"]
    assert (line["code"], line["reason"], line["outcome"]) == ("UNAVAILABLE", "REASON_DRAINING", "UNKNOWN")


async def test_health_says_whether_the_service_can_do_its_job(service: Service) -> None:
    async def check() -> bool:
        return False

    async with running(service, check) as (_, channel):
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", NAME):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_taken_port_ends_the_start_with_one_sentence_and_nothing_else(
    service: Service, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running(service, metrics_port=0) as (server, _):
        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            async with running(Service(), port=server.port):
                pass
        assert capfd.readouterr().err == "", "gRPC's core speaks for itself"
        with pytest.raises(StartError, match="cannot serve metrics"):
            async with running(Service(), metrics_port=server.metrics_port):
                pass
        url = f"http://127.0.0.1:{server.metrics_port}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=20).read().decode())
        assert "grpc_server_handled_total" in text


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is no address of this machine")
async def test_two_services_may_have_one_port_on_two_addresses(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with (
        running(service, port=port),
        running(Service(), host="127.0.0.2", port=port) as (server, _),
        grpc.aio.insecure_channel(f"127.0.0.2:{server.port}") as channel,
    ):
        assert await do(channel)("ok", timeout=30) == "ok"


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "DATABASE"),
        ({"DATABASE__URL": "mysql://u:hush@h/db"}, "DATABASE__URL"),
        ({"DATABASE__URL": "postgresql://u:hush@127.0.0.1:1/db", "MEMORY__PORT": "hush"}, "MEMORY__PORT"),
        ({"DATABASE__URL": "postgresql://u:hush@127.0.0.1:1/db", "REDIS__BUDGETMS": "hush"}, "REDIS__BUDGETMS"),
        ({"DATABASE__URL": "postgresql://u:hush@127.0.0.1:1/db"}, "cannot reach Postgres (DATABASE__URL): nothing listens"),
        (
            {
                "DATABASE__URL": "postgresql://u@127.0.0.1:1/db",
                "DATABASE__MIGRATE_URL": "postgresql://u:hush@127.0.0.1:1/db",
            },
            "cannot reach Postgres (DATABASE__MIGRATE_URL): nothing listens",
        ),
        ({"DATABASE__URL": "postgresql://u:hush@127.0.0.1:1/db", "DATABASE__MIGRATE": "no"}, "DATABASE__URL"),
    ],
)
async def test_a_start_that_cannot_go_on_says_why_in_one_sentence_without_the_value(
    environment: dict[str, str], told: str, tmp_path: Any
) -> None:
    names = ("DATABASE__", "REDIS__", "MEMORY__", "LOG__")
    clean = {name: value for name, value in os.environ.items() if not name.upper().startswith(names)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "twofold_memory", env=clean | environment, cwd=tmp_path, stdout=PIPE, stderr=PIPE
    )
    _, error = await process.communicate()
    text = error.decode()
    assert process.returncode == 1
    assert text.startswith("twofold-memory: ")
    assert told in text
    assert text.count("\n") == 1
    assert "hush" not in text
    assert "Traceback" not in text


async def test_connections_spread_over_the_servers_of_the_process_and_all_of_them_end(service: Service) -> None:
    async with running(service, listeners=3) as (server, _), contextlib.AsyncExitStack() as channels:
        for number in range(24):
            options = [("grpc.use_local_subchannel_pool", 1), ("number", number)]
            channel = await channels.enter_async_context(
                grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options)
            )
            assert await do(channel)("ok", timeout=30) == "ok"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await do(channel)("ok", timeout=5)
