"""WatchService: read, ask, answer, again and again."""

import contextlib
from collections.abc import AsyncGenerator

from twofold.memory.v1 import watch_pb2 as pb
from twofold.memory.v1 import watch_pb2_grpc as stubs
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_memory.watching import Watches
from twofold_memory.wire import watches as wire
from twofold_memory.wire.messages import thread_key


class WatchService(stubs.WatchServiceServicer):
    """Following conversations."""

    def __init__(self, watches: Watches) -> None:
        self._watches = watches

    async def WatchConversation(
        self, request: pb.WatchConversationRequest, context: Context
    ) -> AsyncGenerator[pb.WatchConversationResponse, None]:
        key = thread_key(request.workspace_id, request.thread_id)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        async with contextlib.aclosing(self._watches.watch(key, user_id, wire.start(request, key))) as watched:
            async for told in watched:
                yield wire.response(key, told)
