"""The gRPC face of events."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from twofold.router.v1 import event_pb2, event_pb2_grpc
from twofold_chassis import call, fields
from twofold_chassis.alongside import alongside
from twofold_chassis.refusals import Refusal
from twofold_router import wire_events as wire
from twofold_router.event_streams import EventStream, EventStreams
from twofold_router.events import Events

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class EventService(event_pb2_grpc.EventServiceServicer):
    """EventService of the contract."""

    def __init__(self, events: Events, streams: EventStreams) -> None:
        self._events = events
        self._streams = streams

    async def Publish(self, request: event_pb2.PublishRequest, context: "Context") -> event_pb2.PublishResponse:
        log, events = wire.log_key(request), wire.new_events(request)
        request_id = fields.optional_identifier(request.request_id, "request_id")
        return wire.publish_response(await self._events.publish(log, events, request_id=request_id))

    async def ListEvents(self, request: event_pb2.ListEventsRequest, context: "Context") -> event_pb2.ListEventsResponse:
        log, after, count = wire.log_key(request), wire.after(request), fields.page_size(request.page_size)
        return wire.list_events_response(await self._events.list(log, after, count))

    async def Subscribe(  # type: ignore[override]  # its answers are encoded already
        self, requests: AsyncIterator[event_pb2.SubscribeRequest], context: "Context"
    ) -> AsyncGenerator[event_pb2.SubscribeResponse | wire.Encoded, None]:
        opening = wire.opening(await anext(requests, event_pb2.SubscribeRequest()))
        async with self._streams.open(opening) as stream, alongside(_obeying(stream, requests)):
            while (told := await call.unless_draining(stream.next())) is not None:
                for response in wire.subscribe_responses(told):
                    yield response


async def _obeying(stream: EventStream, requests: AsyncIterator[event_pb2.SubscribeRequest]) -> None:
    """Does what the caller says, for as long as it says something and takes what it is told.

    That it says no more ends nothing.
    """
    try:
        async for request in requests:
            await stream.until_taken()
            stream.obey(wire.wish(request))
    except Refusal as refusal:
        stream.fail(refusal)
