"""Permissions on the wire."""

from datetime import datetime

from twofold.registry.v1 import permission_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.requests import Attempt, attempt
from twofold_registry.permissions import Facts, Grant, GrantKey, GrantQuery, Reason, judge
from twofold_registry.resources import Page, Read
from twofold_registry.revisions import Revision, revision_of
from twofold_registry.wire import pages
from twofold_registry.wire.forms import json_object, present

_REASONS = {
    Reason.GRANT: pb.CHECK_REASON_GRANT,
    Reason.ROLE: pb.CHECK_REASON_ROLE,
    Reason.NO_GRANT: pb.CHECK_REASON_NO_GRANT,
    Reason.EXPIRED: pb.CHECK_REASON_EXPIRED,
    Reason.WORKSPACE_UNKNOWN: pb.CHECK_REASON_WORKSPACE_UNKNOWN,
    Reason.USER_UNKNOWN: pb.CHECK_REASON_USER_UNKNOWN,
    Reason.AGENT_UNKNOWN: pb.CHECK_REASON_AGENT_UNKNOWN,
}


def granted_key(request: pb.GrantRequest) -> GrantKey:
    present(request, "grant")
    return GrantKey(
        fields.identifier(request.grant.workspace_id, "grant.workspace_id"),
        fields.identifier(request.grant.user_id, "grant.user_id"),
        fields.identifier(request.grant.agent_id, "grant.agent_id"),
    )


def granted_until(request: pb.GrantRequest) -> datetime | None:
    """When the grant is to expire; that it lies in the future is judged by the database's clock."""
    grant = request.grant
    return fields.moment(grant.expire_time, "grant.expire_time") if grant.HasField("expire_time") else None


def grant_attempt(request: pb.GrantRequest) -> Attempt:
    return attempt(request.grant.workspace_id, "Grant", request, request.request_id)


def grant_key(request: pb.RevokeRequest | pb.CheckRequest) -> GrantKey:
    return GrantKey(
        fields.identifier(request.workspace_id, "workspace_id"),
        fields.identifier(request.user_id, "user_id"),
        fields.identifier(request.agent_id, "agent_id"),
    )


def revoke_attempt(request: pb.RevokeRequest) -> Attempt:
    return attempt(request.workspace_id, "Revoke", request, request.request_id)


def least_revision(request: pb.CheckRequest) -> Revision | None:
    return revision_of(request.min_revision_token, "min_revision_token")


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


def granted(grant: Grant, revision: Revision) -> bytes:
    return pb.GrantResponse(grant=grant_message(grant), revision_token=revision.token()).SerializeToString()


def revoked(was_granted: bool, revision: Revision) -> bytes:
    return pb.RevokeResponse(revoked=was_granted, revision_token=revision.token()).SerializeToString()


def checked(read: Read[Facts]) -> pb.CheckResponse:
    verdict = judge(read.value)
    return pb.CheckResponse(
        allowed=verdict.allowed,
        reason=_REASONS[verdict.reason],
        revision_token=read.revision.token(),
        expire_time=None if verdict.expires_at is None else fields.timestamp(verdict.expires_at),
    )


def listed(query: GrantQuery, page: Page[Grant]) -> pb.ListGrantsResponse:
    messages, token = pages.filled(page, query, grant_message, lambda grant: [grant.key.user_id, grant.key.agent_id])
    return pb.ListGrantsResponse(grants=messages, next_page_token=token)
