"""Watching on the wire."""

from twofold.memory.v1 import watch_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, InvalidToken
from twofold_memory import tokens
from twofold_memory.threads import ThreadKey
from twofold_memory.watching import Batch, CaughtUp, Changed, Start, Told
from twofold_memory.wire.messages import messages_of

_SEQ_MAX = 2**63 - 2


def start(request: pb.WatchConversationRequest, key: ThreadKey) -> Start:
    """Where to begin."""
    seq = fields.whole(request.after_seq, "after_seq", least=0, most=_SEQ_MAX)
    if request.resume_token:
        if seq or request.from_end:
            raise InvalidField("resume_token", "is not to be given with after_seq or from_end")
        token = tokens.unseal(key, request.resume_token, "resume_token")
        if not token.epoch:
            raise InvalidToken("resume_token", "is of a turn that had no number yet")
        return Start(token.seq, token.epoch, request.until_caught_up)
    if request.from_end:
        if seq:
            raise InvalidField("after_seq", "is not to be given with from_end")
        return Start(None, until_caught_up=request.until_caught_up)
    return Start(seq, until_caught_up=request.until_caught_up)


def response(key: ThreadKey, told: Told) -> pb.WatchConversationResponse:
    """One answer of the stream."""
    answer = pb.WatchConversationResponse(thread_token=tokens.seal(key, told.epoch, told.seq))
    match told:
        case Batch():
            answer.batch.messages.extend(messages_of(told.entries))
        case Changed():
            answer.history_changed.epoch = told.epoch
        case CaughtUp():
            answer.caught_up.last_seq = told.seq
        case _:
            answer.heartbeat.last_seq = told.seq
    return answer
