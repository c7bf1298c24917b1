"""What is asked when a thread is read."""

from collections.abc import Sequence

from twofold.memory.v1 import context_pb2, conversation_pb2, message_pb2
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory import tokens
from twofold_memory.threads import Level, ThreadKey
from twofold_memory.tokens import ThreadToken
from twofold_memory.wire.messages import thread_key

COUNT_DEFAULT = 20
# As many as a window in L1 holds by default.
COUNT_BUDGETED = 100
COUNT_MAX = 500
TOKENS_DEFAULT = 8_000
TOKENS_MAX = 1_000_000
SEQ_MAX = 2**53
_LEVELS = {
    message_pb2.READ_LEVEL_UNSPECIFIED: Level.VERIFIED,
    message_pb2.READ_LEVEL_VERIFIED: Level.VERIFIED,
    message_pb2.READ_LEVEL_AT_LEAST: Level.AT_LEAST,
    message_pb2.READ_LEVEL_ANY: Level.ANY,
}

Reader = conversation_pb2.ReadWindowRequest | context_pb2.InvokingRequest


def count(request: Reader, default: int = COUNT_DEFAULT) -> int:
    """How many messages at most."""
    return fields.whole_or_default(request.message_count_max, "message_count_max", default=default, most=COUNT_MAX)


def budgeted_count(request: conversation_pb2.ReadWindowRequest) -> tuple[int, int | None]:
    """How many messages at most, and how many tokens; None for any number of them."""
    budget = fields.whole(request.token_count_max, "token_count_max", least=0, most=TOKENS_MAX) or None
    return count(request, COUNT_DEFAULT if budget is None else COUNT_BUDGETED), budget


def budget(request: context_pb2.InvokingRequest) -> int:
    """How many tokens at most."""
    return fields.whole_or_default(request.token_count_max, "token_count_max", default=TOKENS_DEFAULT, most=TOKENS_MAX)


def level_and_token(request: Reader, key: ThreadKey | None) -> tuple[Level, ThreadToken | None]:
    """How new the answer must be."""
    level = _LEVELS.get(request.read_level)
    if level is None:
        raise InvalidField("read_level", "must be one of the levels of the contract")
    if level is Level.AT_LEAST and not request.thread_token:
        raise InvalidField("thread_token", "is required with READ_LEVEL_AT_LEAST")
    if level is not Level.AT_LEAST and request.thread_token:
        raise InvalidField("thread_token", "is only for READ_LEVEL_AT_LEAST")
    if not request.thread_token:
        return level, None
    if key is None:
        raise InvalidField("thread_token", "is only for requests with a thread_id")
    return level, tokens.unseal(key, request.thread_token, "thread_token")


def optional_thread_key(request: context_pb2.InvokingRequest) -> ThreadKey | None:
    """The thread whose context is asked for, if any."""
    if not request.thread_id:
        fields.identifier(request.workspace_id, "workspace_id")
        return None
    return thread_key(request.workspace_id, request.thread_id)


def seq(value: int, field: str = "seq") -> int:
    """The number of a message."""
    return fields.whole(value, field, least=1, most=SEQ_MAX)


def seq_cursor(page_token: str, query: Sequence[object]) -> int | None:
    """The seq behind which a page begins."""
    place = fields.page_place(page_token, query, int)
    return None if place is None else place[0]


def beyond(request: conversation_pb2.ListMessagesRequest, query: Sequence[object]) -> int | None:
    """The seq behind which a page of messages begins, in its direction; None for the very beginning, or the newest."""
    place = seq_cursor(request.page_token, query)
    if place is not None:
        return place
    if not fields.whole(request.from_seq, "from_seq", least=0, most=SEQ_MAX):
        return None
    return request.from_seq + 1 if request.newest_first else request.from_seq - 1
