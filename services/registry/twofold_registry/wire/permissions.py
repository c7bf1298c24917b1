"""Grants on the wire; checks are read and written in `checks.py`."""

from collections.abc import Sequence
from typing import TypeVar

from twofold.registry.v1 import permission_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_chassis.requests import Attempt, attempt
from twofold_registry.permissions import (
    BATCH_MAX,
    Condition,
    Grant,
    Granted,
    GrantKey,
    GrantOrder,
    GrantQuery,
    RevokeOrder,
)
from twofold_registry.resources import Answer, Page
from twofold_registry.revisions import Revision, revision_of
from twofold_registry.routers import Waited
from twofold_registry.wire import pages
from twofold_registry.wire.forms import json_object, present

Order = TypeVar("Order", bound=RevokeOrder)

_CONDITIONS = {
    pb.GRANT_CONDITION_UNSPECIFIED: Condition.ANY,
    pb.GRANT_CONDITION_MUST_NOT_EXIST: Condition.ABSENT,
    pb.GRANT_CONDITION_MUST_EXIST: Condition.PRESENT,
}
_ONLY_PUBLISHED = {pb.AGENT_CONDITION_UNSPECIFIED: False, pb.AGENT_CONDITION_PUBLISHED: True}
_WAITS = {pb.REVOKE_WAIT_UNSPECIFIED: False, pb.REVOKE_WAIT_NONE: False, pb.REVOKE_WAIT_ALL_ROUTERS: True}


def grant_order(request: pb.GrantRequest) -> GrantOrder:
    present(request, "grant")
    grant = request.grant
    workspace_id = fields.identifier(grant.workspace_id, "grant.workspace_id")
    return GrantOrder(
        _key(workspace_id, grant, "grant."),
        Condition.ANY,
        "grant.",
        fields.moment(grant.expire_time, "grant.expire_time") if grant.HasField("expire_time") else None,
        only_published=False,
    )


def grant_attempt(request: pb.GrantRequest) -> Attempt:
    return attempt(request.grant.workspace_id, "Grant", request, request.request_id)


def grant_orders(request: pb.BatchGrantRequest) -> Sequence[GrantOrder]:
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    counted(request.grants, "grants")
    orders = [_granted_item(workspace_id, item, f"grants[{index}].") for index, item in enumerate(request.grants)]
    return _distinct(orders, "grants")


def batch_grant_attempt(request: pb.BatchGrantRequest) -> Attempt:
    return attempt(request.workspace_id, "BatchGrant", request, request.request_id)


def revoke_order(request: pb.RevokeRequest) -> RevokeOrder:
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    return RevokeOrder(_key(workspace_id, request, ""), Condition.ANY, "")


def revoke_attempt(request: pb.RevokeRequest) -> Attempt:
    return attempt(request.workspace_id, "Revoke", request, request.request_id)


def revoke_orders(request: pb.BatchRevokeRequest) -> Sequence[RevokeOrder]:
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    counted(request.revokes, "revokes")
    orders = [_revoked_item(workspace_id, item, f"revokes[{index}].") for index, item in enumerate(request.revokes)]
    return _distinct(orders, "revokes")


def batch_revoke_attempt(request: pb.BatchRevokeRequest) -> Attempt:
    return attempt(request.workspace_id, "BatchRevoke", request, request.request_id)


def waits(request: pb.RevokeRequest | pb.BatchRevokeRequest) -> bool:
    """Whether to answer only when no router answers from what was before."""
    wish = _WAITS.get(request.wait)
    if wish is None:
        raise InvalidField("wait", "is not known")
    return wish


def list_query(request: pb.ListGrantsRequest) -> GrantQuery:
    return GrantQuery(
        fields.identifier(request.workspace_id, "workspace_id"),
        fields.optional_identifier(request.user_id, "user_id"),
        fields.optional_identifier(request.agent_id, "agent_id"),
    )


def list_place(request: pb.ListGrantsRequest, query: GrantQuery) -> tuple[tuple[str, str], int]:
    """The pair of ids the page begins behind, and the size of the page."""
    cursor = fields.page_place(request.page_token, query, str, str)
    return (cursor[0], cursor[1]) if cursor else ("", ""), fields.page_size(request.page_size)


def grant_message(grant: Grant) -> pb.AgentGrant:
    return pb.AgentGrant(
        workspace_id=grant.key.workspace_id,
        user_id=grant.key.user_id,
        agent_id=grant.key.agent_id,
        expire_time=None if grant.expires_at is None else fields.timestamp(grant.expires_at),
        granted_by=grant.granted_by,
        grant_time=fields.timestamp(grant.granted_at),
    )


def grant_bytes(grant: Grant) -> bytes:
    return grant_message(grant).SerializeToString()


def grant_json(grant: Grant) -> str:
    return json_object(grant_message(grant))


def granted(done: Sequence[Granted], revision: Revision) -> bytes:
    (only,) = done
    return pb.GrantResponse(grant=grant_message(only.grant), revision_token=revision.token()).SerializeToString()


def all_granted(done: Sequence[Granted], revision: Revision) -> bytes:
    results = [pb.BatchGrantResult(grant=grant_message(one.grant), changed=one.changed) for one in done]
    return pb.BatchGrantResponse(results=results, revision_token=revision.token()).SerializeToString()


def revoked(done: Sequence[bool], revision: Revision) -> bytes:
    (only,) = done
    return pb.RevokeResponse(revoked=only, revision_token=revision.token()).SerializeToString()


def all_revoked(orders: Sequence[RevokeOrder]) -> Answer[Sequence[bool]]:
    """Writes the answer down for these orders."""

    def answer(done: Sequence[bool], revision: Revision) -> bytes:
        results = [
            pb.BatchRevokeResult(user_id=order.key.user_id, agent_id=order.key.agent_id, revoked=was_granted)
            for order, was_granted in zip(orders, done, strict=True)
        ]
        return pb.BatchRevokeResponse(results=results, revision_token=revision.token()).SerializeToString()

    return answer


def revoked_at(answer: pb.RevokeResponse | pb.BatchRevokeResponse) -> Revision:
    """The revision in an answer of our own."""
    revision = revision_of(answer.revision_token, "revision_token")
    assert revision is not None
    return revision


def tell_of_routers(answer: pb.RevokeResponse | pb.BatchRevokeResponse, waited: Waited) -> None:
    answer.acked_routers, answer.expired_routers = waited


def listed(query: GrantQuery, page: Page[Grant]) -> pb.ListGrantsResponse:
    messages, token = pages.filled(page, query, grant_message, lambda grant: [grant.key.user_id, grant.key.agent_id])
    return pb.ListGrantsResponse(grants=messages, next_page_token=token)


def counted(items: Sequence[object], field: str) -> None:
    """Refuses a batch that is empty or too large."""
    if not items:
        raise InvalidField(field, "is required")
    if len(items) > BATCH_MAX:
        raise InvalidField(field, f"has {len(items)} items, at most {BATCH_MAX} are allowed")


def _granted_item(workspace_id: str, item: pb.BatchGrantItem, field: str) -> GrantOrder:
    only_published = _ONLY_PUBLISHED.get(item.agent_condition)
    if only_published is None:
        raise InvalidField(f"{field}agent_condition", "is not known")
    return GrantOrder(
        _key(workspace_id, item, field),
        _condition(item.grant_condition, field),
        field,
        fields.moment(item.expire_time, f"{field}expire_time") if item.HasField("expire_time") else None,
        only_published,
    )


def _revoked_item(workspace_id: str, item: pb.BatchRevokeItem, field: str) -> RevokeOrder:
    return RevokeOrder(_key(workspace_id, item, field), _condition(item.grant_condition, field), field)


def _key(
    workspace_id: str, item: pb.AgentGrant | pb.BatchGrantItem | pb.RevokeRequest | pb.BatchRevokeItem, field: str
) -> GrantKey:
    return GrantKey(
        workspace_id,
        fields.identifier(item.user_id, f"{field}user_id"),
        fields.identifier(item.agent_id, f"{field}agent_id"),
    )


def _condition(value: pb.GrantCondition.ValueType, field: str) -> Condition:
    condition = _CONDITIONS.get(value)
    if condition is None:
        raise InvalidField(f"{field}grant_condition", "is not known")
    return condition


def _distinct(orders: Sequence[Order], field: str) -> Sequence[Order]:
    """Refuses a pair that stands there twice: which of the two would be meant?"""
    places: dict[GrantKey, int] = {}
    for place, order in enumerate(orders):
        first = places.setdefault(order.key, place)
        if first != place:
            raise InvalidField(f"{field}[{place}]", f"is of the same pair as {field}[{first}]")
    return orders
