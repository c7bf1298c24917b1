"""ContextService: read, ask, answer."""

import asyncio
from collections.abc import Sequence

from twofold.memory.v1 import context_pb2 as pb
from twofold.memory.v1 import context_pb2_grpc as stubs
from twofold_chassis.edge import Context
from twofold_memory.appends import Appends
from twofold_memory.documents import Document, DocumentRecall
from twofold_memory.preferences import PreferenceRecall, Recalled, UserKey
from twofold_memory.recall import Recall
from twofold_memory.summaries import Recalled as SummedUp
from twofold_memory.summaries import SummaryRecall
from twofold_memory.threads import Window
from twofold_memory.wire import contexts as wire
from twofold_memory.wire import messages


class ContextService(stubs.ContextServiceServicer):
    """What an agent is given before a turn, and what is kept after it."""

    def __init__(
        self,
        appends: Appends,
        recall: Recall,
        summaries: SummaryRecall,
        preferences: PreferenceRecall,
        documents: DocumentRecall,
    ) -> None:
        self._appends = appends
        self._recall = recall
        self._summaries = summaries
        self._preferences = preferences
        self._documents = documents

    async def Invoking(self, request: pb.InvokingRequest, context: Context) -> pb.InvokingResponse:
        asked = wire.invoking(request)
        (window, summed_up, documents), preferences = await asyncio.gather(self._conversation(asked), self._recalled(asked))
        return wire.invoking_response(asked, window, summed_up, preferences, documents)

    async def Invoked(self, request: pb.InvokedRequest, context: Context) -> pb.InvokedResponse:
        turn = messages.exchange(request)
        kept = await self._appends.append(turn, messages.wanted(request))
        return messages.invoked_response(turn, kept)

    async def _conversation(self, asked: wire.Invoking) -> tuple[Window | None, SummedUp | None, Sequence[Document] | None]:
        linked = self._documents.ask(asked.key, asked.user_id) if asked.key and asked.with_documents else None
        window, summed_up = await self._window(asked)
        return window, summed_up, await self._documents.beside(window, linked) if window and linked else None

    async def _window(self, asked: wire.Invoking) -> tuple[Window | None, SummedUp | None]:
        if asked.key is None:
            return None, None
        window = self._recall.window(asked.key, asked.count, user_id=asked.user_id, level=asked.level, token=asked.token)
        if not asked.with_summary:
            return await window, None
        return await self._summaries.beside(asked.key, asked.level, window)

    async def _recalled(self, asked: wire.Invoking) -> Recalled | None:
        if asked.user_id is None:
            return None
        return await self._preferences.read(UserKey(asked.workspace_id, asked.user_id))
