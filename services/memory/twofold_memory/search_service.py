"""SearchService: read, ask, answer."""

from twofold.memory.v1 import search_pb2 as pb
from twofold.memory.v1 import search_pb2_grpc as stubs
from twofold_chassis.edge import Context
from twofold_memory.searching import Searches
from twofold_memory.wire import searches as wire


class SearchService(stubs.SearchServiceServicer):
    """Finding what was said."""

    def __init__(self, searches: Searches) -> None:
        self._searches = searches

    async def SearchMessages(self, request: pb.SearchMessagesRequest, context: Context) -> pb.SearchMessagesResponse:
        found = await self._searches.search(wire.search(request))
        return wire.response(request, found)
