"""EventLogService: read, ask, answer."""

from twofold.memory.v1 import event_pb2 as pb
from twofold.memory.v1 import event_pb2_grpc as stubs
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_chassis.requests import attempt
from twofold_memory.store.events import PostgresEvents
from twofold_memory.wire import events as wire
from twofold_memory.wire.messages import thread_key


class EventLogService(stubs.EventLogServiceServicer):
    """What happened to conversations."""

    def __init__(self, events: PostgresEvents) -> None:
        self._events = events

    async def AppendEvents(self, request: pb.AppendEventsRequest, context: Context) -> pb.AppendEventsResponse:
        key, events = thread_key(request.workspace_id, request.thread_id), wire.new_events(request)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        call = attempt(key.workspace_id, "AppendEvents", request, request.request_id)
        answer = await self._events.append(
            call, key, user_id, events, lambda recorded: wire.append_response(recorded).SerializeToString()
        )
        return pb.AppendEventsResponse.FromString(answer)

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        key = thread_key(request.workspace_id, request.thread_id)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        kind = fields.optional_identifier(request.kind, "kind")
        query = ("ListEvents", *key, user_id, kind, request.after_offset)
        size, after = fields.page_size(request.page_size), wire.after(request, query)
        return wire.list_response(await self._events.page(key, user_id, kind, after, size), query)
