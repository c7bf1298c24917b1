"""Branches on the wire."""

from collections.abc import Sequence

from twofold.memory.v1 import branch_pb2 as pb
from twofold_chassis import fields
from twofold_memory.branches import NewBranch
from twofold_memory.threads import Conversation, ThreadKey
from twofold_memory.wire import conversations
from twofold_memory.wire.messages import thread_key
from twofold_memory.wire.reads import SEQ_MAX


def new_branch(request: pb.ForkConversationRequest) -> NewBranch:
    """The branch that is to be made, with an id of the caller's or a new one."""
    parent = thread_key(request.workspace_id, request.thread_id)
    thread_id = fields.optional_identifier(request.branch_thread_id, "branch_thread_id") or fields.new_id()
    at_seq = None
    if request.HasField("at_seq"):
        at_seq = fields.whole(request.at_seq, "at_seq", least=0, most=SEQ_MAX)
    return NewBranch(
        key=ThreadKey(parent.workspace_id, thread_id),
        parent=parent,
        at_seq=at_seq,
        user_id=fields.optional_identifier(request.user_id, "user_id"),
        title=conversations.title(request.title, "title"),
        metadata=fields.labels(request.metadata, "metadata"),
    )


def fork_answer(branch: Conversation) -> bytes:
    """The answer of ForkConversation."""
    return pb.ForkConversationResponse(conversation=conversations.message(branch)).SerializeToString()


def after(request: pb.ListBranchesRequest, query: Sequence[object]) -> str:
    """The branch behind which a page begins."""
    place = fields.page_place(request.page_token, query, str)
    return "" if place is None else place[0]


def list_response(found: Sequence[Conversation], size: int, query: Sequence[object]) -> pb.ListBranchesResponse:
    """A page; `found` has one more than `size` if there is another page."""
    page = found[:size]
    following = fields.page_token(query, [page[-1].key.thread_id]) if len(found) > size else ""
    return pb.ListBranchesResponse(conversations=map(conversations.message, page), next_page_token=following)
