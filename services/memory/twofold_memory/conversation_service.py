"""ConversationService: read, ask, answer."""

from dataclasses import replace
from typing import Any

from twofold.memory.v1 import conversation_pb2 as pb
from twofold.memory.v1 import conversation_pb2_grpc as stubs
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_chassis.requests import attempt
from twofold_memory.appends import Appends
from twofold_memory.changes import Changes
from twofold_memory.history import History
from twofold_memory.recall import Recall
from twofold_memory.store.conversations import PostgresConversations
from twofold_memory.wire import conversations as wire
from twofold_memory.wire import messages, reads


class ConversationService(stubs.ConversationServiceServicer):
    """Conversations and their messages."""

    def __init__(
        self,
        conversations: PostgresConversations,
        changes: Changes,
        appends: Appends,
        recall: Recall,
        history: History,
    ) -> None:
        self._conversations = conversations
        self._changes = changes
        self._appends = appends
        self._recall = recall
        self._history = history

    async def CreateConversation(
        self, request: pb.CreateConversationRequest, context: Context
    ) -> pb.CreateConversationResponse:
        new = wire.new_conversation(request)
        call = attempt(new.key.workspace_id, "CreateConversation", request, request.request_id)
        call = replace(call, thread_id=new.key.thread_id)  # also if it was made here
        made = self._conversations.create(
            call,
            new,
            fields.whole(request.erased_epoch, "erased_epoch", least=0, most=2**63 - 1),
            lambda made: pb.CreateConversationResponse(conversation=wire.message(made)).SerializeToString(),
        )
        answer = await self._changes.make(made)
        return pb.CreateConversationResponse.FromString(answer)

    async def GetConversation(self, request: pb.GetConversationRequest, context: Context) -> pb.GetConversationResponse:
        key, user_id = wire.key_of(request), fields.optional_identifier(request.user_id, "user_id")
        return pb.GetConversationResponse(conversation=wire.message(await self._conversations.get(key, user_id)))

    async def ListConversations(
        self, request: pb.ListConversationsRequest, context: Context
    ) -> pb.ListConversationsResponse:
        workspace_id = fields.identifier(request.workspace_id, "workspace_id")
        asked, size = wire.asked(request), fields.page_size(request.page_size)
        query = wire.query(request, asked)
        found = await self._conversations.page(workspace_id, asked, wire.after(request, query), size + 1)
        return wire.list_response(found, size, query)

    async def UpdateConversation(
        self, request: pb.UpdateConversationRequest, context: Context
    ) -> pb.UpdateConversationResponse:
        key, edit = wire.edited_key(request), wire.edit(request)
        etag = wire.given_etag(request.conversation.etag, "conversation.etag")
        call = attempt(key.workspace_id, "UpdateConversation", request, request.request_id)
        answer = await self._conversations.update(
            call,
            key,
            edit,
            etag,
            lambda changed: pb.UpdateConversationResponse(conversation=wire.message(changed)).SerializeToString(),
        )
        return pb.UpdateConversationResponse.FromString(answer)

    async def DeleteConversation(
        self, request: pb.DeleteConversationRequest, context: Context
    ) -> pb.DeleteConversationResponse:
        key = wire.key_of(request)
        call = attempt(key.workspace_id, "DeleteConversation", request, request.request_id)
        await self._changes.make(self._conversations.delete(call, key, wire.given_etag(request.etag, "etag")))
        return pb.DeleteConversationResponse()

    async def UndeleteConversation(
        self, request: pb.UndeleteConversationRequest, context: Context
    ) -> pb.UndeleteConversationResponse:
        key = wire.key_of(request)
        call = attempt(key.workspace_id, "UndeleteConversation", request, request.request_id)
        change = self._conversations.undelete(
            call, key, lambda shown: pb.UndeleteConversationResponse(conversation=wire.message(shown)).SerializeToString()
        )
        return pb.UndeleteConversationResponse.FromString(await self._changes.make(change))

    async def AppendTurn(self, request: pb.AppendTurnRequest, context: Context) -> pb.AppendTurnResponse:
        turn = messages.appended_turn(request)
        kept = await self._appends.append(turn, messages.wanted(request))
        return messages.append_turn_response(turn, kept)

    async def GetTurn(self, request: pb.GetTurnRequest, context: Context) -> pb.GetTurnResponse:
        key = messages.thread_key(request.workspace_id, request.thread_id)
        turn_id = fields.identifier(request.turn_id, "turn_id")
        turn = await self._history.turn(key, turn_id, fields.optional_identifier(request.user_id, "user_id"))
        return messages.get_turn_response(key, turn)

    async def GetMessage(self, request: pb.GetMessageRequest, context: Context) -> pb.GetMessageResponse:
        key, seq = messages.thread_key(request.workspace_id, request.thread_id), reads.seq(request.seq)
        message = await self._history.message(key, seq, fields.optional_identifier(request.user_id, "user_id"))
        return messages.get_message_response(message)

    async def ReadWindow(self, request: pb.ReadWindowRequest, context: Context) -> Any:
        key = messages.thread_key(request.workspace_id, request.thread_id)
        level, token = reads.level_and_token(request, key)
        user_id = fields.optional_identifier(request.user_id, "user_id")
        count, budget = reads.budgeted_count(request)
        window = await self._recall.window(key, count, user_id=user_id, level=level, token=token)
        return messages.EncodedWindow(key, window, budget)

    async def ListMessages(self, request: pb.ListMessagesRequest, context: Context) -> pb.ListMessagesResponse:
        key = messages.thread_key(request.workspace_id, request.thread_id)
        user_id, size = fields.optional_identifier(request.user_id, "user_id"), fields.page_size(request.page_size)
        query = ("ListMessages", *key, request.newest_first, request.from_seq, user_id)
        beyond = reads.beyond(request, query)
        page = await self._history.page(key, size, newest_first=request.newest_first, beyond=beyond, user_id=user_id)
        return messages.list_messages_response(page, query)
