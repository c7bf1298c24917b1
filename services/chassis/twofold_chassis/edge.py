"""The edge of a service: the one interceptor that every call passes.

It gives the call its identity, request id and deadline, turns refusals into statuses and everything unexpected into
INTERNAL with an error id, counts, measures and logs. One interceptor instead of several: each wrapping costs a hot call.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, Counter, Histogram

from twofold_chassis import call, fields, refusals, status
from twofold_chassis.call import Call, Drain, Identity
from twofold_chassis.refusals import InvalidArgument, InvalidField, Reason, Refusal
from twofold_chassis.settings import LogSettings

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
else:  # generic for the type checker only
    Handler = grpc.RpcMethodHandler
    Context = grpc.aio.ServicerContext
Serializer = Callable[[Any], bytes]
Behaviour = Callable[[Any, Context], Awaitable[Any]]

_ANONYMOUS = Identity("anonymous")
_OURS = (call.ACTOR_KEY, call.REQUEST_ID_KEY)
_CLEAN = re.compile(r"[\x20-\x7e]{1,255}").fullmatch
_CUT_S = 0.5
_GONE_S = 0.005  # a cancellation that follows the end of the requests takes a tenth of it
# What the log may repeat of a refusal besides ids: words of ours.
_WORDS = ("outcome", "peer", "http_status")
_WRITTEN_BY_CALLERS = re.compile(r"\[(['\"]).*\1\]", re.DOTALL)


class _Kind(NamedTuple):
    """One of the four kinds of calls: its word in metrics, where a handler has its method, and how to make one."""

    word: str
    method: str
    handler: Callable[..., Handler]


# By whether requests and answers stream.
_KINDS = {
    (False, False): _Kind("unary", "unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): _Kind("server_stream", "unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): _Kind("client_stream", "stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): _Kind("bidi_stream", "stream_stream", grpc.stream_stream_rpc_method_handler),
}


class Metrics:
    """Metrics of a server, named as in go-grpc-prometheus, so that dashboards of the ecosystem fit."""

    def __init__(self, registry: CollectorRegistry) -> None:
        method = ("grpc_type", "grpc_service", "grpc_method")
        self.started = Counter("grpc_server_started", "Calls begun.", method, registry=registry)
        self.handled = Counter("grpc_server_handled", "Calls ended.", (*method, "grpc_code"), registry=registry)
        self.seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from the call's arrival to its end.",
            method,
            registry=registry,
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )


class Edge(grpc.aio.ServerInterceptor):
    """The interceptor. Handlers are wrapped once per method, not once per call."""

    def __init__(
        self,
        metrics: Metrics,
        log: LogSettings,
        *,
        deadline_s: float,
        stream_deadline_s: float,
        serializers: Mapping[str, Serializer],
    ) -> None:
        self._metrics = metrics
        self._log = log
        self._deadline_s = deadline_s
        self._stream_deadline_s = stream_deadline_s
        self._serializers = serializers
        self._wrapped: dict[str, Handler] = {}
        self._running: set[asyncio.Task[Any] | None] = set()
        self._drain = Drain()
        self._cut = False
        self._idle = asyncio.Event()

    async def drain(self, within_s: float) -> None:
        """Refuses new calls from now on, and lets those that run finish; what waits in `call.unless_draining` ends now.

        What has not ended by then is cut off, as Draining.
        """
        self._drain.begin()
        await self._ended(within_s)
        self._cut = True
        for task in self._running:
            assert task is not None
            task.cancel()
        await self._ended(_CUT_S)

    async def _ended(self, within_s: float) -> None:
        if self._running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None or _is_infrastructure(method):
            return handler
        wrapped = self._wrap(method, handler)
        self._wrapped[method] = wrapped
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        kind = _KINDS[handler.request_streaming, handler.response_streaming]
        behaviour, reader = getattr(handler, kind.method), handler.request_deserializer
        if handler.response_streaming:
            behaviour = _written(behaviour)
        if handler.request_streaming:
            behaviour = _told_all(behaviour, answers_meanwhile=handler.response_streaming)
            reader = _read_or_refused(reader)
        record = _Record(method, handler, self._metrics, self._log)
        streams = handler.request_streaming or handler.response_streaming
        return kind.handler(
            self._served(behaviour, record, streams=streams),
            request_deserializer=reader,
            response_serializer=self._serializers.get(method, handler.response_serializer),
        )

    def _served(self, behaviour: Behaviour, record: "_Record", *, streams: bool) -> Behaviour:
        """The one wrapper of calls of all kinds: `behaviour` returns the answer, or has written all of them."""
        default_s = self._stream_deadline_s if streams else self._deadline_s

        # Each call runs in a task of its own, so what this puts into the context variable ends with the call.
        async def serve(request: Any, context: Context) -> Any:
            current, started, own_deadline, odd = _enter(context, default_s, self._drain)
            self._begin(record)
            code, refusal = grpc.StatusCode.OK, None
            try:
                self._check(odd)
                if own_deadline or streams:
                    async with asyncio.timeout(current.left_s()):
                        return await behaviour(request, context)
                return await behaviour(request, context)
            except asyncio.CancelledError:
                if not self._cut:
                    code = grpc.StatusCode.CANCELLED
                    raise
                refusal = _cut_off()
                code = status.code(refusal)
                await _abort(context, code, refusal, current)
            except Exception as error:  # noqa: BLE001  (the outermost one: nothing of an error may pass it)
                refusal = _refusal(error, current, record.method)
                code = status.code(refusal)
                await _abort(context, code, refusal, current)
            finally:
                self._end(record, code, refusal, started, current)

        return serve

    def _begin(self, record: "_Record") -> None:
        self._running.add(asyncio.current_task())
        record.begin()

    def _check(self, odd: str) -> None:
        if self._drain.begun:
            raise refusals.Draining("this server is shutting down", retry_after_s=1.0)
        if odd:
            raise InvalidField(f"metadata[{odd}]", "must be at most 255 printable characters of ASCII")

    def _end(self, record: "_Record", code: grpc.StatusCode, refusal: Refusal | None, started: float, current: Call) -> None:
        self._running.discard(asyncio.current_task())
        if self._drain.begun and not self._running:
            self._idle.set()
        record.end(code, refusal, started, current)


def _written(behaviour: Any) -> Behaviour:
    """A method that yields its answers, as one that writes them."""

    async def write(request: Any, context: Context) -> None:
        async with contextlib.aclosing(behaviour(request, context)) as answers:
            async for answer in answers:
                await context.write(answer)

    return write


def _told_all(behaviour: Behaviour, *, answers_meanwhile: bool) -> Behaviour:
    """A method that takes many requests, which it gets to the end only if its caller has ended them."""

    async def serve(requests: Any, context: Context) -> Any:
        if answers_meanwhile:
            # Later it could meet an answer that is being sent, and be refused for that.
            await context.send_initial_metadata(())
        async with contextlib.aclosing(_to_their_end(requests, context)) as told:
            return await behaviour(told, context)

    return serve


async def _to_their_end(requests: Any, context: Context) -> AsyncGenerator[Any, None]:
    async for request in requests:
        yield request
    # A stream whose caller has gone (cancelled, cut, out of time) ends like a whole one, and only then the call is
    # cancelled: an import of the half would be taken for all of it. Sending proves whether somebody is there.
    try:
        await context.send_initial_metadata(())
    except grpc.aio.UsageError:  # sent already, with an answer
        await asyncio.sleep(_GONE_S)
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


def _read_or_refused(read: Any) -> Any:
    """Reads one of many requests. They are read while the method runs, so what cannot be read would be its defect."""

    def one(raw: bytes) -> Any:
        try:
            return read(raw)
        except DecodeError:
            raise InvalidField("request", "one of the stream is not a message of this rpc") from None

    return one


def _enter(context: Context, deadline_s: float, drain: Drain) -> tuple[Call, float, bool, str]:
    """Makes the call known to what it runs.

    The third value says whether it brought no deadline of its own, the last names metadata of ours that it got wrong;
    what is empty counts as not given.
    """
    started = time.monotonic()
    identity, request_id, odd = _ANONYMOUS, "", ""
    for key, value in context.invocation_metadata() or ():
        if value and key in _OURS:
            if not isinstance(value, str) or not _CLEAN(value):
                odd = key
            elif key == call.ACTOR_KEY:
                identity = Identity(value)
            else:
                request_id = value
    left = context.time_remaining()
    current = Call(identity, request_id or fields.new_id(), started + (deadline_s if left is None else left), drain)
    call.enter(current)
    return current, started, left is None, odd


class _Record:
    """What is counted and logged of the calls of one method."""

    def __init__(self, method: str, handler: Handler, metrics: Metrics, log: LogSettings) -> None:
        self.method = method
        service, _, name = method.lstrip("/").partition("/")
        self._labels = (_KINDS[handler.request_streaming, handler.response_streaming].word, service, name)
        self._started = metrics.started.labels(*self._labels)
        self._handled = metrics.handled
        self._seconds = metrics.seconds.labels(*self._labels)
        self._ok = metrics.handled.labels(*self._labels, "OK")
        self._log = log
        self._seen = 0
        self._logger = structlog.get_logger("twofold.call")

    def begin(self) -> None:
        self._started.inc()

    def end(self, code: grpc.StatusCode, refusal: Refusal | None, started: float, current: Call) -> None:
        seconds = time.monotonic() - started
        self._seconds.observe(seconds)
        if code is grpc.StatusCode.OK:
            self._ok.inc()
            self._seen += 1
            if seconds * 1000 < self._log.slow_ms and self._seen % self._log.sample_every != 1 % self._log.sample_every:
                return
        else:
            self._handled.labels(*self._labels, code.name.title().replace("_", "")).inc()
        entry: dict[str, object] = {} if refusal is None else _told(refusal)
        entry |= {
            "method": self.method,
            "code": code.name,
            "ms": round(seconds * 1000, 2),
            "actor": current.identity.actor,
            "request_id": current.request_id,
        }
        self._logger.info("call", **entry)


def _told(refusal: Refusal) -> dict[str, object]:
    """What the log says of a refusal: its reason, and which field and ids it speaks of. Never content, nor its message."""
    told: dict[str, object] = {key: value for key, value in refusal.metadata.items() if key.endswith("_id") or key in _WORDS}
    told["reason"] = Reason.Name(refusal.reason)
    if isinstance(refusal, InvalidArgument):
        told["field"] = _WRITTEN_BY_CALLERS.sub("[…]", refusal.field)
    return told


async def _abort(context: Context, code: grpc.StatusCode, refusal: Refusal, current: Call) -> None:
    trailers = (*status.trailers(refusal), (call.REQUEST_ID_KEY, current.request_id))
    await context.abort(code, refusal.message, trailers)


def _refusal(error: Exception, current: Call, method: str) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TimeoutError) and current.left_s() <= 0.001:
        return refusals.DeadlineExceeded("the deadline ran out")
    error_id = fields.new_id()
    structlog.get_logger("twofold.call").error(
        "defect", error_id=error_id, method=method, request_id=current.request_id, exc_info=error
    )
    return Refusal(f"an error of ours; it is logged under {error_id}", error_id=error_id)


def _cut_off() -> Refusal:
    # Unlike a call that is refused at the door, this one may have done its work or a part of it.
    return refusals.Draining("this server is shutting down and has cut off the call", retry_after_s=1.0, outcome="UNKNOWN")


def _is_infrastructure(method: str) -> bool:
    return method.startswith(("/grpc.health.", "/grpc.reflection."))
