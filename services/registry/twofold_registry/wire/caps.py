"""Caps on the wire."""

from twofold.registry.v1 import billing_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_chassis.requests import Attempt, attempt
from twofold_registry import months
from twofold_registry.caps import Cap, Caps, CapState, StoredCaps
from twofold_registry.resources import Read
from twofold_registry.revisions import Revision
from twofold_registry.wire import money
from twofold_registry.wire.forms import json_object, present

_LIMIT_MAX = 10**18
STATES = {
    CapState.NONE: pb.CAP_STATE_NONE,
    CapState.SOFT: pb.CAP_STATE_SOFT,
    CapState.HARD: pb.CAP_STATE_HARD,
}


def new_caps(request: pb.SetCapsRequest) -> Caps:
    present(request, "caps")
    draft = request.caps
    return Caps(
        workspace_id=fields.identifier(draft.workspace_id, "caps.workspace_id"),
        messages=_cap(draft.messages, "caps.messages"),
        tokens=_cap(draft.tokens, "caps.tokens"),
        cost_micros=_cap(draft.cost_micros, "caps.cost_micros"),
        currency=money.currency(draft.currency, "caps.currency"),
    )


def set_attempt(request: pb.SetCapsRequest) -> Attempt:
    return attempt(request.caps.workspace_id, "SetCaps", request, request.request_id)


def caps_message(stored: StoredCaps) -> pb.UsageCaps:
    caps, used = stored.caps, stored.used
    return pb.UsageCaps(
        workspace_id=caps.workspace_id,
        messages=_cap_message(caps.messages),
        tokens=_cap_message(caps.tokens),
        cost_micros=_cap_message(caps.cost_micros),
        currency=caps.currency,
        state=STATES[stored.state],
        month=months.named(used.month),
        messages_used=used.messages,
        tokens_used=min(used.tokens, 2**63 - 1),
        cost_used_micros=used.cost_micros,
        etag=stored.etag,
    )


def caps_json(stored: StoredCaps, *, told: bool = False) -> str:
    """For the audit. `told`: with the state, and of the month, that those who follow the changes were told last."""
    message = caps_message(stored)
    if told and stored.told is not None:
        for field in ("messages_used", "tokens_used", "cost_used_micros"):
            message.ClearField(field)
        message.state = STATES[stored.told.state]
        message.month = months.named(stored.told.month)
    return json_object(message)


def got(read: Read[StoredCaps]) -> pb.GetCapsResponse:
    return pb.GetCapsResponse(caps=caps_message(read.value), revision_token=read.revision.token())


def were_set(stored: StoredCaps, revision: Revision) -> bytes:
    return pb.SetCapsResponse(caps=caps_message(stored), revision_token=revision.token()).SerializeToString()


def _cap(cap: pb.Cap, field: str) -> Cap:
    soft = fields.whole(cap.soft, f"{field}.soft", least=0, most=_LIMIT_MAX)
    hard = fields.whole(cap.hard, f"{field}.hard", least=0, most=_LIMIT_MAX)
    if hard and soft > hard:
        raise InvalidField(f"{field}.soft", "must not be above hard")
    return Cap(soft, hard)


def _cap_message(cap: Cap) -> pb.Cap | None:
    return pb.Cap(soft=cap.soft, hard=cap.hard) if cap.soft or cap.hard else None
