"""Limits on the wire, of workspaces and of users."""

from collections.abc import Sequence

from twofold.registry.v1 import workspace_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_registry.workspaces import Limit, LimitKind, sorted_limits

_AMOUNT_MAX = 10**15
_KINDS = {
    pb.LIMIT_KIND_USER_HOUR_MESSAGES: LimitKind.USER_HOUR_MESSAGES,
    pb.LIMIT_KIND_USER_MINUTE_MESSAGES: LimitKind.USER_MINUTE_MESSAGES,
    pb.LIMIT_KIND_AGENT_HOUR_MESSAGES: LimitKind.AGENT_HOUR_MESSAGES,
    pb.LIMIT_KIND_WORKSPACE_DAY_MESSAGES: LimitKind.WORKSPACE_DAY_MESSAGES,
    pb.LIMIT_KIND_WORKSPACE_DAY_TOKENS: LimitKind.WORKSPACE_DAY_TOKENS,
    pb.LIMIT_KIND_WORKSPACE_DAY_MICROS: LimitKind.WORKSPACE_DAY_MICROS,
}
_FORMS = {kind: form for form, kind in _KINDS.items()}


def limits(drafts: Sequence[pb.Limit], field: str, *, of_user: bool = False) -> tuple[Limit, ...]:
    """The limits; those of a user are of the kinds that a user can have."""
    if len(drafts) > len(_KINDS):
        raise InvalidField(field, f"has {len(drafts)} entries, at most {len(_KINDS)} are allowed")
    found: dict[LimitKind, Limit] = {}
    for index, draft in enumerate(drafts):
        limit = _limit(draft, f"{field}[{index}]")
        if limit.kind in found:
            raise InvalidField(f"{field}[{index}].kind", "is in the list already")
        if of_user and not limit.kind.is_of_users:
            raise InvalidField(f"{field}[{index}].kind", "is not a limit that a user can have")
        found[limit.kind] = limit
    return sorted_limits(found.values())


def messages(values: Sequence[Limit]) -> list[pb.Limit]:
    return [pb.Limit(kind=_FORMS[value.kind], amount=value.amount, shadow=value.is_shadow) for value in values]


def _limit(draft: pb.Limit, field: str) -> Limit:
    kind = _KINDS.get(draft.kind)
    if kind is None:
        raise InvalidField(f"{field}.kind", "is not a kind of limit")
    return Limit(kind, fields.whole(draft.amount, f"{field}.amount", least=0, most=_AMOUNT_MAX), draft.shadow)
