"""The audit on the wire."""

from collections.abc import Iterator, Sequence
from functools import partial

from twofold.registry.v1 import audit_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField, InvalidPageToken
from twofold_registry import audit
from twofold_registry.audit import AuditQuery, Chained, Head, Link, Place, Trail
from twofold_registry.audit_chains import Fault, FaultKind, Progress, Result
from twofold_registry.audit_keys import KEY_ID_LENGTH, SIGNATURE_BYTES, SignedHead, key_id
from twofold_registry.resources import Page
from twofold_registry.revisions import Revision, revision_of
from twofold_registry.wire import pages

_RESOURCE_ID_BYTES_MAX = 2 * 3 * fields.ID_BYTES_MAX + 1  # of a permission: two ids, each byte percent-encoded
_WHOLE_MAX = 2**63 - 1
_HASH_BYTES = 32
_EXPORT_BYTES_MAX = 1024 * 1024


def list_query(request: pb.ListAuditEntriesRequest) -> AuditQuery:
    if request.resource_kind and request.resource_kind not in audit.RESOURCE_KINDS:
        raise InvalidField("resource_kind", f"must be one of {', '.join(audit.RESOURCE_KINDS)}")
    if request.resource_id and not request.resource_kind:
        raise InvalidField("resource_kind", "is required with resource_id")
    query = AuditQuery(
        workspace_id=fields.identifier(request.workspace_id, "workspace_id"),
        resource_kind=request.resource_kind or None,
        resource_id=fields.optional_identifier(request.resource_id, "resource_id", bytes_max=_RESOURCE_ID_BYTES_MAX),
        actor=fields.optional_identifier(request.actor, "actor"),
        action=fields.optional_identifier(request.action, "action"),
        request_id=fields.optional_identifier(request.call_request_id, "call_request_id"),
        start=fields.moment(request.start_time, "start_time") if request.HasField("start_time") else None,
        end=fields.moment(request.end_time, "end_time") if request.HasField("end_time") else None,
        first_revision=fields.whole(request.first_revision, "first_revision", least=0, most=_WHOLE_MAX) or None,
        last_revision=fields.whole(request.last_revision, "last_revision", least=0, most=_WHOLE_MAX) or None,
        oldest_first=request.oldest_first,
    )
    if query.start is not None and query.end is not None and query.end <= query.start:
        raise InvalidField("end_time", "must be after start_time")
    if query.first_revision and query.last_revision and query.last_revision < query.first_revision:
        raise InvalidField("last_revision", "must not be below first_revision")
    return query


def list_place(request: pb.ListAuditEntriesRequest, query: AuditQuery) -> tuple[Place | None, int]:
    """The entry the page begins behind, and the size of the page."""
    size = fields.page_size(request.page_size)
    cursor = fields.page_place(request.page_token, query, int, int)
    if cursor is None:
        return None, size
    try:
        return Place(audit.moment(cursor[0]), cursor[1]), size
    except OverflowError:
        raise InvalidPageToken("page_token", "is damaged") from None


def least(request: pb.ListAuditEntriesRequest) -> Revision | None:
    return revision_of(request.min_revision_token, "min_revision_token")


def listed(query: AuditQuery, trail: Trail) -> pb.ListAuditEntriesResponse:
    def cursor(chained: Chained) -> list[int]:
        return [audit.microseconds(chained.entry.at), chained.entry.seq]

    page = Page(trail.entries, more=False)
    messages, token = pages.filled(page, query, partial(_entry_message, query.workspace_id), cursor)
    if not token and trail.end is not None:
        token = fields.page_token(query, [audit.microseconds(trail.end.at), trail.end.seq])
    return pb.ListAuditEntriesResponse(entries=messages, next_page_token=token)


def verified_before(request: pb.VerifyAuditRequest) -> Link | None:
    """The end of what was verified before."""
    seq = fields.whole(request.after_seq, "after_seq", least=0, most=_WHOLE_MAX)
    if not seq and not request.after_hash:
        return None
    if not seq:
        raise InvalidField("after_seq", "is required with after_hash")
    return Link(seq, _exactly(request.after_hash, "after_hash", _HASH_BYTES))


def signed_head(request: pb.VerifyAuditRequest, after: Link | None) -> SignedHead | None:
    """The head that the chain must still hold."""
    if not request.HasField("signed_head"):
        return None
    told, field = request.signed_head, "signed_head"
    if fields.identifier(told.workspace_id, f"{field}.workspace_id") != request.workspace_id:
        raise InvalidField(f"{field}.workspace_id", "is another workspace")
    seq = fields.whole(told.seq, f"{field}.seq", least=1, most=_WHOLE_MAX)
    if after is not None and seq < after.seq:
        raise InvalidField(f"{field}.seq", "lies before after_seq")
    if not told.HasField("time"):
        raise InvalidField(f"{field}.time", "is required")
    if told.time.nanos % 1000:  # not signed: it would pass for the time that was
        raise InvalidField(f"{field}.time", "must be in whole microseconds")
    head = Head(
        workspace_id=told.workspace_id,
        seq=seq,
        hash=_exactly(told.hash, f"{field}.hash", _HASH_BYTES),
        revision=fields.whole(told.revision, f"{field}.revision", least=1, most=_WHOLE_MAX),
        epoch=fields.whole(told.epoch, f"{field}.epoch", least=1, most=_WHOLE_MAX),
        at=fields.moment(told.time, f"{field}.time"),
    )
    name = fields.identifier(told.key_id, f"{field}.key_id", bytes_max=KEY_ID_LENGTH)
    return SignedHead(head, name, _exactly(told.signature, f"{field}.signature", SIGNATURE_BYTES))


def walked(told: Progress | Result) -> pb.VerifyAuditResponse:
    if isinstance(told, Progress):
        return pb.VerifyAuditResponse(progress=_progress_message(told))
    result = pb.AuditResult(entry_count=told.count, verified=_progress_message(told.progress))
    if told.fault is not None:
        result.fault.CopyFrom(_fault_message(told.fault))
    return pb.VerifyAuditResponse(result=result)


def export_place(request: pb.ExportAuditRequest) -> tuple[str, int]:
    """The workspace, and the place that the export begins behind."""
    after = fields.whole(request.after_seq, "after_seq", least=0, most=2**62)
    return fields.identifier(request.workspace_id, "workspace_id"), after


def exported(workspace_id: str, entries: Sequence[Chained]) -> Iterator[pb.ExportAuditResponse]:
    """The entries in messages of a bounded size."""
    response, room = pb.ExportAuditResponse(), _EXPORT_BYTES_MAX
    for chained in entries:
        message = _entry_message(workspace_id, chained)
        room -= message.ByteSize()
        if room < 0 and response.entries:
            yield response
            response, room = pb.ExportAuditResponse(), _EXPORT_BYTES_MAX - message.ByteSize()
        response.entries.append(message)
    yield response


def head_exported(signed: SignedHead, public_key: bytes) -> pb.ExportAuditHeadResponse:
    head = signed.head
    message = pb.SignedAuditHead(
        workspace_id=head.workspace_id,
        seq=head.seq,
        hash=head.hash,
        revision=head.revision,
        epoch=head.epoch,
        time=fields.timestamp(head.at),
        key_id=signed.key_id,
        signature=signed.signature,
    )
    return pb.ExportAuditHeadResponse(signed_head=message, public_key=public_key)


def key(public_key: bytes) -> pb.GetAuditKeyResponse:
    return pb.GetAuditKeyResponse(key_id=key_id(public_key), public_key=public_key)


def _exactly(value: bytes, field: str, length: int) -> bytes:
    if len(value) != length:
        raise InvalidField(field, f"must have {length} bytes, and has {len(value)}")
    return value


def _progress_message(progress: Progress) -> pb.AuditProgress:
    end = progress.end
    return pb.AuditProgress(seq=end.seq, hash=end.hash, revision=progress.revision, head_seq=progress.head_seq)


def _fault_message(fault: Fault) -> pb.AuditFault:
    return pb.AuditFault(kind=_FAULTS[fault.kind], seq=fault.seq, revision=fault.revision, message=fault.message)


_FAULTS = {kind: pb.AuditFaultKind.Value(f"AUDIT_FAULT_KIND_{kind.name}") for kind in FaultKind}


def _entry_message(workspace_id: str, chained: Chained) -> pb.AuditEntry:
    entry = chained.entry
    return pb.AuditEntry(
        workspace_id=workspace_id,
        seq=entry.seq,
        revision=entry.revision,
        ordinal=entry.ordinal,
        actor=entry.actor,
        action=entry.action,
        resource_kind=entry.resource_kind,
        resource_id=entry.resource_id,
        before_json=entry.before,
        after_json=entry.after,
        request_id=entry.request_id,
        create_time=fields.timestamp(entry.at),
        prev_hash=chained.prev_hash,
        hash=chained.hash,
    )
