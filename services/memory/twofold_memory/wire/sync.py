"""Status and audits on the wire."""

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from twofold.memory.v1 import sync_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory.audits import SAMPLE_MAX, Asked, Finding, Report, WindowState
from twofold_memory.sync_status import Backlog, Index, SyncStatus

_SAMPLE_DEFAULT = 50
_COMPARED = (WindowState.EQUAL, WindowState.LAGGING, WindowState.DIFFERENT)


def status_response(status: SyncStatus) -> pb.GetSyncStatusResponse:
    """How a worker sees the two stores."""
    backlogs = status.backlogs
    return pb.GetSyncStatusResponse(
        worker_id=status.worker_id,
        journal=pb.JournalStatus(
            turn_count=status.copies_count,
            oldest_age=_duration(timedelta(seconds=status.copies_age_s)) if status.copies_count else None,
        ),
        index=_index(status.index) if status.index else None,
        dead_letters=_backlog(backlogs.dead_letters) if backlogs else None,
        window_purges=_backlog(backlogs.window_purges) if backlogs else None,
        redis=pb.RedisStatus(
            answers=status.redis.answers, may_evict=status.redis.may_evict, circuit_open=status.redis.circuit_open
        ),
        postgres_answers=status.postgres_answers,
        windows_answer_alone=status.windows_answer_alone,
    )


def asked(request: pb.AuditConversationsRequest) -> Asked:
    """What is to be audited."""
    workspace_id = fields.optional_identifier(request.workspace_id, "workspace_id")
    thread_id = fields.optional_identifier(request.thread_id, "thread_id")
    if thread_id is not None and workspace_id is None:
        raise InvalidField("workspace_id", "is required with thread_id")
    if thread_id is not None and request.sample_size:
        raise InvalidField("sample_size", "is not for one conversation")
    size = fields.whole_or_default(request.sample_size, "sample_size", default=_SAMPLE_DEFAULT, most=SAMPLE_MAX)
    return Asked(workspace_id, thread_id, size, request.repair)


def audit_response(report: Report, *, only_findings: bool) -> pb.AuditConversationsResponse:
    """What was found."""
    told = [finding for finding in report.findings if not (only_findings and finding.sound)]
    return pb.AuditConversationsResponse(
        conversations=map(_audit, told), audited_count=len(report.findings), truncated=report.truncated
    )


def _audit(finding: Finding) -> pb.ConversationAudit:
    numbers, head = finding.numbers, finding.head
    audit = pb.ConversationAudit(
        workspace_id=finding.key.workspace_id,
        thread_id=finding.key.thread_id,
        window=pb.WindowState.ValueType(finding.window.value),
        different_seq=finding.different_seq,
        last_seq=0 if head is None else head.next_seq - 1,
        absent_in_postgres=head is None,
        numbers_unknown=head is not None and numbers is None,
        waiting_count=finding.waiting_count,
        leftover_turn_ids=sorted(finding.leftovers),
        window_after=pb.WindowState.ValueType(finding.window_after.value if finding.window_after else 0),
        waiting_count_after=finding.waiting_after,
    )
    if finding.held is not None and finding.held.warm and finding.window in _COMPARED:
        audit.window_first_seq, audit.window_last_seq = finding.held.first_seq, finding.held.next_seq - 1
    if numbers is not None:
        audit.missing_count, audit.missing_seq = numbers.missing_count, numbers.missing_seq
        audit.stray_count, audit.stray_seq = numbers.stray_count, numbers.stray_seq
        audit.beyond_count = numbers.beyond_count
    return audit


def _index(index: Index) -> pb.IndexStatus:
    return pb.IndexStatus(
        thread_count=index.thread_count,
        counted_thread_count=index.counted_thread_count,
        waiting_thread_count=index.waiting_thread_count,
        waiting_turn_count=index.waiting_turn_count,
        truncated=index.truncated,
    )


def _backlog(backlog: Backlog) -> pb.Backlog:
    return pb.Backlog(count=backlog.count, oldest_age=None if backlog.oldest_age is None else _duration(backlog.oldest_age))


def _duration(value: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(value)
    return message
