"""Audit entries on the wire."""

from twofold.registry.v1 import audit_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_registry.audit import NEWEST, RESOURCE_KINDS, AuditQuery, Entry, Place
from twofold_registry.resources import Page
from twofold_registry.wire import pages

_RESOURCE_ID_BYTES_MAX = 2 * 3 * fields.ID_BYTES_MAX + 1  # of a permission: two ids, each byte percent-encoded


def list_query(request: pb.ListAuditEntriesRequest) -> AuditQuery:
    if request.resource_kind and request.resource_kind not in RESOURCE_KINDS:
        raise InvalidField("resource_kind", f"must be one of {', '.join(RESOURCE_KINDS)}")
    if request.resource_id and not request.resource_kind:
        raise InvalidField("resource_kind", "is required with resource_id")
    return AuditQuery(
        workspace_id=fields.identifier(request.workspace_id, "workspace_id"),
        resource_kind=request.resource_kind or None,
        resource_id=fields.optional_identifier(request.resource_id, "resource_id", bytes_max=_RESOURCE_ID_BYTES_MAX),
    )


def list_place(request: pb.ListAuditEntriesRequest, query: AuditQuery) -> tuple[Place, int]:
    """The entry the page begins behind, and the size of the page."""
    cursor = fields.page_place(request.page_token, query, int, int)
    return Place(*cursor) if cursor else NEWEST, fields.page_size(request.page_size)


def listed(query: AuditQuery, page: Page[Entry]) -> pb.ListAuditEntriesResponse:
    messages, token = pages.filled(page, query, _entry_message, lambda entry: [entry.revision, entry.ordinal])
    return pb.ListAuditEntriesResponse(entries=messages, next_page_token=token)


def _entry_message(entry: Entry) -> pb.AuditEntry:
    return pb.AuditEntry(
        revision=entry.revision,
        actor=entry.actor,
        action=entry.action,
        resource_kind=entry.resource_kind,
        resource_id=entry.resource_id,
        before_json=entry.before,
        after_json=entry.after,
        request_id=entry.request_id,
        create_time=fields.timestamp(entry.at),
    )
