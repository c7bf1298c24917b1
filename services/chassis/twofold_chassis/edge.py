"""The edge of a service: what every call passes.

It gives the call its identity, request id and deadline, turns refusals into statuses and everything unexpected into
INTERNAL with an error id, counts, measures and logs. One wrapping instead of several, and no interceptor: each would cost a
hot call some percent.
"""

import asyncio
import contextlib
import contextvars
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry

from twofold_chassis import call, fields, refusals, status
from twofold_chassis.call import Call, Drain, Identity
from twofold_chassis.counting import Counts, Histogram
from twofold_chassis.overdue import Overdue, Running
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
# Of the call that is being served: gRPC hands it to whoever looks the method up, and makes it anew for whoever asks later.
_metadata: contextvars.ContextVar[Iterable[tuple[str, str | bytes]]] = contextvars.ContextVar("twofold_metadata")
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
        self.started = Counts("grpc_server_started", "Calls begun.", method, registry=registry)
        self.handled = Counts("grpc_server_handled", "Calls ended.", (*method, "grpc_code"), registry=registry)
        self.seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from the call's arrival to its end.",
            method,
            (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )


class Edge(grpc.GenericRpcHandler):
    """What a server has instead of the handlers of its services. Those are wrapped once per method, not once per call."""

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
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._wrapped: dict[str, Handler] = {}
        self._running: set[Running] = set()
        self._overdue = Overdue(deadline_s)
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
            task.cancel()
        await self._ended(_CUT_S)
        self._overdue.close()

    async def _ended(self, within_s: float) -> None:
        if self._running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._idle.wait()

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Takes what is behind it, as a server does."""
        self._handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """The same ones once more; like the server of grpc.aio it needs them only once."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a call, in whose task this is asked; None for another method than ours."""
        _metadata.set(handler_call_details.invocation_metadata)
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        for handlers in self._handlers:
            handler = handlers.service(handler_call_details)
            if handler is not None:
                return self._wrapped.setdefault(method, self._wrap(method, handler))
        return None

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
        running, overdue, drain = self._running, self._overdue, self._drain

        # Each call runs in a task of its own, so what this puts into the context variable ends with the call.
        async def serve(request: Any, context: Context) -> Any:
            task = asyncio.current_task()
            assert task is not None
            current, started, brought_none, odd = _enter(context, default_s, drain)
            running.add(task)
            record.begin()
            code, refusal = grpc.StatusCode.OK, None
            try:
                if drain.begun or odd:
                    raise _refused_at_the_door(drain, odd)
                if streams:
                    async with asyncio.timeout(current.left_s()):
                        return await behaviour(request, context)
                if brought_none:  # else gRPC itself ends it
                    overdue.join(task, current.deadline)
                return await behaviour(request, context)
            except asyncio.CancelledError:
                refusal = self._why_cancelled(task)
                if refusal is None:
                    code = grpc.StatusCode.CANCELLED
                    raise
                code = status.code(refusal)
                overdue.leave(task)  # it has its end
                await _abort(context, code, refusal, current)
            except Exception as error:  # noqa: BLE001  (the outermost one: nothing of an error may pass it)
                refusal = _refusal(error, current, record.method)
                code = status.code(refusal)
                overdue.leave(task)
                await _abort(context, code, refusal, current)
            finally:
                self._end(task)
                record.end(code, refusal, started, current)

        return serve

    def _why_cancelled(self, task: Running) -> Refusal | None:
        """What the server ended it for; None if it was the caller."""
        if self._overdue.has_ended(task) and not task.uncancel():
            return _out_of_time()
        return _cut_off() if self._cut else None

    def _end(self, task: Running) -> None:
        self._overdue.leave(task)
        self._running.discard(task)
        if self._drain.begun and not self._running:
            self._idle.set()


def _written(behaviour: Any) -> Behaviour:
    """A method that yields its answers, as one that writes them."""

    async def write(request: Any, context: Context) -> None:
        async with contextlib.aclosing(behaviour(request, context)) as answers:
            async for answer in answers:
                try:
                    await context.write(answer)
                except grpc.aio.InternalError:  # its caller has gone while this was on its way, and did not wait for it
                    raise asyncio.CancelledError from None

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
    for key, value in _metadata.get():
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
        self._handled = metrics.handled
        self._observe = metrics.seconds.labels(*self._labels).observe
        self._ok = metrics.handled.labels(*self._labels, "OK")
        self._slow_s = log.slow_ms / 1000
        self._sample_every = log.sample_every
        self._logger = structlog.get_logger("twofold.call")
        self.begin = metrics.started.labels(*self._labels).inc

    def end(self, code: grpc.StatusCode, refusal: Refusal | None, started: float, current: Call) -> None:
        seconds = time.monotonic() - started
        self._observe(seconds)
        if code is grpc.StatusCode.OK:
            self._ok.inc()
            if seconds < self._slow_s and self._ok.number % self._sample_every != 1 % self._sample_every:
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
        return _out_of_time()
    error_id = fields.new_id()
    structlog.get_logger("twofold.call").error(
        "defect", error_id=error_id, method=method, request_id=current.request_id, exc_info=error
    )
    return Refusal(f"an error of ours; it is logged under {error_id}", error_id=error_id)


def _refused_at_the_door(drain: Drain, odd: str) -> Refusal:
    if drain.begun:
        return refusals.Draining("this server is shutting down", retry_after_s=1.0)
    return InvalidField(f"metadata[{odd}]", "must be at most 255 printable characters of ASCII")


def _out_of_time() -> Refusal:
    return refusals.DeadlineExceeded("the deadline ran out")


def _cut_off() -> Refusal:
    # Unlike a call that is refused at the door, this one may have done its work or a part of it.
    return refusals.Draining("this server is shutting down and has cut off the call", retry_after_s=1.0, outcome="UNKNOWN")
