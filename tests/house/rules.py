"""The rules of request fields: for each kind, values that break it, and which rule a field has.

What is required and what is output only is read from the comments of the protos; limits stand in the table below.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from twofold_chassis import fields

KIB, MIB = 1024, 1024 * 1024
YEAR_S = 365 * 86400
Bad = Iterator[tuple[str, Any]]


class Rule:
    """What a field must be, and the reasons it may be refused with."""

    reasons: ClassVar[Sequence[str]] = ("REASON_INVALID_FIELD",)

    def bad(self, good: Any) -> Bad:
        """Values that break the rule, each with a word for it. `good` is one that does not."""
        raise NotImplementedError


@dataclass(frozen=True)
class Line(Rule):
    """One line of text, without control characters."""

    bytes_max: int = 255

    def bad(self, good: Any) -> Bad:
        yield "one byte too long", "x" * (self.bytes_max + 1)
        yield "too long in bytes, not in characters", "é" * (self.bytes_max // 2 + 1)
        for what, character in (("NUL", "\0"), ("a bell", "\a"), ("a line break", "\n"), ("DEL", "\x7f"), ("C1", "\x85")):
            yield what, f"a{character}b"


@dataclass(frozen=True)
class Text(Rule):
    """Text of any number of lines, without NUL."""

    bytes_max: int

    def bad(self, good: Any) -> Bad:
        yield "one byte too long", "x" * (self.bytes_max + 1)
        yield "NUL", "a\0b"


@dataclass(frozen=True)
class Written(Rule):
    """Text of any number of lines that has a form of its own as well."""

    bytes_max: int
    ill: Sequence[str]

    def bad(self, good: Any) -> Bad:
        yield from Text(self.bytes_max).bad(good)
        for value in self.ill:
            yield repr(value[:20]), value


@dataclass(frozen=True)
class Blob(Rule):
    """Bytes, whatever they are."""

    bytes_max: int

    def bad(self, good: Any) -> Bad:
        yield "one byte too long", b"x" * (self.bytes_max + 1)


@dataclass(frozen=True)
class Sized(Rule):
    """Bytes of one length, whatever they are."""

    bytes_exactly: int

    def bad(self, good: Any) -> Bad:
        yield "one byte too long", b"x" * (self.bytes_exactly + 1)
        yield "one byte too short", b"x" * (self.bytes_exactly - 1)


@dataclass(frozen=True)
class Formed(Rule):
    """One line that has a form of its own as well."""

    ill: Sequence[str]
    bytes_max: int

    def bad(self, good: Any) -> Bad:
        yield from Line(self.bytes_max).bad(good)
        for value in self.ill:
            yield repr(value), value


@dataclass(frozen=True)
class Whole(Rule):
    """A whole number within bounds."""

    least: int
    most: int | None = None

    def bad(self, good: Any) -> Bad:
        yield "too small", self.least - 1
        if self.most is not None:
            yield "too large", self.most + 1


@dataclass(frozen=True)
class Choice(Rule):
    """One value of an enum."""

    def bad(self, good: Any) -> Bad:
        yield "an undefined number", 99
        yield "a negative number", -1


@dataclass(frozen=True)
class Etag(Rule):
    """Opaque: what is not the current one is a mismatch, or refused for its form."""

    reasons: ClassVar[Sequence[str]] = ("REASON_INVALID_FIELD", "REASON_ETAG_MISMATCH")

    def bad(self, good: Any) -> Bad:
        yield "not the current one", "W/1"
        yield from Line().bad(good)


@dataclass(frozen=True)
class PageToken(Rule):
    """Of this service, and of this query."""

    reasons: ClassVar[Sequence[str]] = ("REASON_INVALID_PAGE_TOKEN",)

    def bad(self, good: Any) -> Bad:
        yield from Line(5000).bad(good)
        yield "no token", "garbage"
        yield "not ASCII", "é"
        yield "of another query", fields.page_token("another query", ["x"])


@dataclass(frozen=True)
class Token(Rule):
    """Of this service."""

    reasons: ClassVar[Sequence[str]] = ("REASON_INVALID_TOKEN",)

    def bad(self, good: Any) -> Bad:
        yield "no token", b"garbage"
        yield "NUL", b"\0"
        yield "too long", b"x" * 4096
        yield "of another kind", fields.seal("page", b"[1,2]")


@dataclass(frozen=True)
class Time(Rule):
    """A point in time, between bounds that lie `earliest` and `latest` seconds from its good value."""

    earliest_s: int | None = None
    latest_s: int | None = None

    def bad(self, good: Any) -> Bad:
        yield "nanoseconds out of range", Timestamp(seconds=good.seconds, nanos=-1)
        yield "too many nanoseconds", Timestamp(seconds=good.seconds, nanos=1_000_000_000)
        yield "after the year 9999", Timestamp(seconds=10_000 * YEAR_S)
        yield "before the year 1", Timestamp(seconds=-3000 * YEAR_S)
        if self.earliest_s is not None:
            yield "too early", Timestamp(seconds=good.seconds + self.earliest_s)
        if self.latest_s is not None:
            yield "too late", Timestamp(seconds=good.seconds + self.latest_s)


@dataclass(frozen=True)
class Span(Rule):
    """A length of time, more than 0."""

    most_s: int

    def bad(self, good: Any) -> Bad:
        yield "zero", Duration()
        yield "negative", Duration(seconds=-1)
        yield "too long", Duration(seconds=self.most_s, nanos=1)
        yield "seconds and nanoseconds of different signs", Duration(seconds=1, nanos=-1)
        yield "out of any range", Duration(seconds=2**60)


@dataclass(frozen=True)
class Mask(Rule):
    """Names of fields that may be changed."""

    def bad(self, good: Any) -> Bad:
        yield "no paths", FieldMask()
        yield "an unknown path", FieldMask(paths=["no_such_field"])
        yield "an output-only path", FieldMask(paths=[*good.paths, "create_time"])
        yield "an id", FieldMask(paths=["workspace_id"])
        yield "a path that is no name", FieldMask(paths=["display_name\0"])


@dataclass(frozen=True)
class Labels(Rule):
    """Keys like ids, and values."""

    count_max: int
    value: Rule

    def bad(self, good: Any) -> Bad:
        yield "too many entries", {f"key-{number}": "x" for number in range(self.count_max + 1)}
        yield "an empty key", {"": "x"}
        for what, key in Line().bad(""):
            yield f"a key with {what}", {key: "x"}
        for what, value in self.value.bad(""):
            yield f"a value with {what}", {"key": value}


@dataclass(frozen=True)
class Several(Rule):
    """A list of values, each with a rule of its own. Without `count_max` they are counted together with others."""

    count_max: int | None
    each: Rule

    def bad(self, good: Any) -> Bad:
        if self.count_max is not None:
            yield "too many", [f"x{number}" for number in range(self.count_max + 1)]
        yield "an empty one", [""]
        for what, value in self.each.bad(""):
            yield f"one with {what}", [value]


@dataclass(frozen=True)
class Many(Rule):
    """A list of messages."""

    count_max: int

    def bad(self, good: Any) -> Bad:
        if good:
            yield "too many", [good[0]] * (self.count_max + 1)


@dataclass(frozen=True)
class Anything(Rule):
    """Nothing that can be written there is wrong by itself."""

    reasons: ClassVar[Sequence[str]] = ()

    def bad(self, good: Any) -> Bad:
        yield from ()


NAME = Line()
SEQ = Whole(1, 2**53)
HEXADECIMAL = Formed(bytes_max=256, ill=("abc", "xy", "ab cd", "0x00"))
KIND = Formed(bytes_max=64, ill=("Turn", "a b", "a/b", "é"))
MONTH = Formed(bytes_max=255, ill=("2026-13", "2026-1", "1999-12", "26-01", "2026-01-01", "march"))
CURRENCY = Formed(bytes_max=255, ill=("usd", "US", "USDD", "U1D", "$"))
HOST = Formed(
    bytes_max=253, ill=("with space", "http://example.com", ".example.com", "a..b", "-a.com", "a.com/path", "a:80")
)
EMAIL = Formed(bytes_max=254, ill=("no-at-sign", "@example.com", "ada@", "two@at@example.com", "a b@c.de"))
ORDER = Formed(bytes_max=255, ill=("id asc", "ID", "create_time,id", "display_name", " id", "create_time  desc"))
PLAN = Formed(bytes_max=63, ill=("Gold", "-gold", "two words", "gold/2", "ü"))
AGENT_URL = Formed(
    bytes_max=2048,
    ill=(
        "helper",
        "/path",
        "ftp://helper.svc.cluster.local",
        "http://",
        "http:///path",
        "http://user:password@helper.svc.cluster.local",
        "http://helper.svc.cluster.local?query=1",
        "http://helper.svc.cluster.local#fragment",
        "http://helper.svc.cluster.local:99999",
        "http://helper.svc.cluster.local:port",
        "http://evil.example.org",
        "http://evilsvc.cluster.local",
        "http://svc.cluster.local.evil.example.org",
        "http://with space.svc.cluster.local",
        "http://10.0.0.1",
        "http://[::ffff:10.0.0.1]",
        "http://169.254.169.254",
        "http://2852039166",
        "http://[64:ff9b::a9fe:a9fe]",
        "http://10-0-0-1.acme.pod.cluster.local",
        "http://kubernetes.default.svc.cluster.local",
    ),
)

# By the full name of a field without the package: rules that its name and type do not tell.
FIELDS: Mapping[str, Rule] = {
    "registry.v1.Workspace.display_name": NAME,
    "registry.v1.Workspace.namespace": Formed(bytes_max=63, ill=("Upper", "a.b", "-a", "a-", "a_b", "with space")),
    "registry.v1.Workspace.plan": PLAN,
    "registry.v1.WorkspaceSettings.allowed_url_suffixes": Several(50, HOST),
    "registry.v1.WorkspaceSettings.limits": Many(6),
    "registry.v1.User.limits": Many(6),
    "registry.v1.Limit.amount": Whole(0, 10**15),
    "registry.v1.Retention.conversation_days": Whole(0, 36_500),
    "registry.v1.Retention.session_days": Whole(0, 36_500),
    "registry.v1.BatchGetWorkspacesRequest.workspace_ids": Several(500, NAME),
    "registry.v1.BatchGetUsersRequest.user_ids": Several(500, NAME),
    "registry.v1.BatchGetAgentsRequest.agent_ids": Several(500, NAME),
    "registry.v1.ListWorkspacesRequest.plan": NAME,
    "registry.v1.ListWorkspacesRequest.display_name_prefix": NAME,
    "registry.v1.ListWorkspacesRequest.order_by": ORDER,
    "registry.v1.ListUsersRequest.order_by": ORDER,
    "registry.v1.ListUsersRequest.email": EMAIL,
    "registry.v1.ListAgentsRequest.order_by": ORDER,
    "registry.v1.User.email": EMAIL,
    "registry.v1.User.display_name": NAME,
    "registry.v1.Agent.display_name": NAME,
    "registry.v1.Agent.url": AGENT_URL,
    "registry.v1.Agent.targets": Many(16),
    "registry.v1.AgentTarget.name": Line(63),
    "registry.v1.AgentTarget.url": AGENT_URL,
    "registry.v1.AgentTarget.weight": Whole(0, 1000),
    "registry.v1.AgentPrice.per_message_micros": Whole(0, 10**12),
    "registry.v1.AgentPrice.per_1000_input_tokens_micros": Whole(0, 10**12),
    "registry.v1.AgentPrice.per_1000_output_tokens_micros": Whole(0, 10**12),
    "registry.v1.AgentPrice.currency": Formed(bytes_max=3, ill=("usd", "US", "EURO", "U$D", "ÄÖÜ")),
    "registry.v1.AgentObservation.target": Line(63),
    "registry.v1.AgentObservation.generation": Whole(1),
    "registry.v1.AgentObservation.observe_time": Time(earliest_s=-100 * YEAR_S, latest_s=120),
    "registry.v1.AgentObservation.message": NAME,
    "registry.v1.ListAgentsRequest.display_name_prefix": NAME,
    "registry.v1.AgentSettings.instructions": Text(64 * KIB),
    "registry.v1.AgentSettings.model": NAME,
    "registry.v1.AgentSettings.context_messages_max": Whole(0, 100),
    "registry.v1.AgentSettings.context_tokens_max": Whole(0, 1_000_000),
    "registry.v1.AgentSettings.first_token_timeout": Span(600),
    "registry.v1.AgentSettings.turn_timeout": Span(3600),
    "registry.v1.AgentGrant.expire_time": Time(earliest_s=-2 * 86400, latest_s=101 * YEAR_S),
    "registry.v1.BatchGrantRequest.grants": Many(500),
    "registry.v1.BatchGrantItem.expire_time": Time(earliest_s=-2 * 86400, latest_s=101 * YEAR_S),
    "registry.v1.BatchRevokeRequest.revokes": Many(500),
    "registry.v1.BatchCheckRequest.pairs": Many(500),
    "registry.v1.CheckRequest.router_incarnation": NAME,
    "registry.v1.BatchCheckRequest.router_incarnation": NAME,
    # What is wrong with one pair is told in its place among the answers.
    "registry.v1.PermissionPair.user_id": Anything(),
    "registry.v1.PermissionPair.agent_id": Anything(),
    "registry.v1.RecordUsageRequest.events": Many(500),
    "registry.v1.UsageEvent.event_time": Time(earliest_s=-100 * YEAR_S, latest_s=2 * 3600),
    "registry.v1.UsageEvent.messages": Whole(0, 10**9),
    "registry.v1.UsageEvent.input_tokens": Whole(0, 10**12),
    "registry.v1.UsageEvent.output_tokens": Whole(0, 10**12),
    "registry.v1.UsageEvent.kind": KIND,
    "registry.v1.StreamUsageRequest.events": Many(500),
    "registry.v1.GetUsageRequest.kind": KIND,
    "registry.v1.QueryUsageRequest.kind": KIND,
    "registry.v1.QueryUsageRequest.start_time": Time(),
    "registry.v1.QueryUsageRequest.end_time": Time(earliest_s=-10 * 86400),
    "registry.v1.ReadWindowRequest.start_time": Time(earliest_s=-26 * 3600, latest_s=2 * 3600),
    "registry.v1.ReadWindowRequest.cell": Span(7200),
    "registry.v1.ReadWindowRequest.operations_for": Span(3600),
    "registry.v1.GetBillRequest.month": MONTH,
    "registry.v1.CloseMonthRequest.month": MONTH,
    "registry.v1.GetInvoiceRequest.month": MONTH,
    "registry.v1.Adjustment.about_month": MONTH,
    "registry.v1.Adjustment.reason": Line(1024),
    "registry.v1.Money.currency": CURRENCY,
    "registry.v1.Money.amount_micros": Whole(-(10**15), 10**15),
    "registry.v1.UsageCaps.currency": CURRENCY,
    "registry.v1.Cap.soft": Whole(0, 10**18),
    "registry.v1.Cap.hard": Whole(0, 10**18),
    "registry.v1.GetUsageRequest.start_time": Time(),
    "registry.v1.GetUsageRequest.end_time": Time(earliest_s=-10 * 86400),
    "registry.v1.RegisterPodRequest.address": NAME,
    "registry.v1.BatchCheckPodsRequest.pods": Many(500),
    "registry.v1.MarkPodDeadRequest.reason": NAME,
    "registry.v1.WatchRouter.incarnation": NAME,
    "registry.v1.WatchPlace.epoch": Whole(1),
    "registry.v1.WatchPlace.revision": Whole(0),
    "registry.v1.WatchPlace.tag": Anything(),  # random: one that is wrong begins the stream anew
    "registry.v1.PodIncarnation.epoch": Whole(1),
    "registry.v1.PodIncarnation.number": Whole(1),
    "registry.v1.RecordSessionsRequest.events": Many(500),
    "registry.v1.SessionEvent.fence": Whole(0),
    "registry.v1.SessionEvent.event_time": Time(earliest_s=-100 * YEAR_S, latest_s=2 * 3600),
    "registry.v1.ListSessionsRequest.start_time": Time(),
    "registry.v1.ListSessionsRequest.end_time": Time(earliest_s=-10 * 86400),
    "registry.v1.ListAuditEntriesRequest.resource_id": Line(2 * 3 * 255 + 1),  # of a permission: two ids, percent-encoded
    "registry.v1.ListAuditEntriesRequest.resource_kind": Formed(bytes_max=255, ill=("nonsense", "User", "user ")),
    "registry.v1.ListAuditEntriesRequest.actor": NAME,
    "registry.v1.ListAuditEntriesRequest.action": NAME,
    "registry.v1.ListAuditEntriesRequest.start_time": Time(),
    "registry.v1.ListAuditEntriesRequest.end_time": Time(earliest_s=-10 * 86400),
    "registry.v1.ListAuditEntriesRequest.first_revision": Whole(0),
    "registry.v1.ListAuditEntriesRequest.last_revision": Whole(0),
    "registry.v1.VerifyAuditRequest.after_seq": Whole(0),
    "registry.v1.VerifyAuditRequest.after_hash": Sized(32),
    "registry.v1.SignedAuditHead.seq": Whole(1),
    "registry.v1.SignedAuditHead.hash": Sized(32),
    "registry.v1.SignedAuditHead.revision": Whole(1),
    "registry.v1.SignedAuditHead.epoch": Whole(1),
    "registry.v1.SignedAuditHead.time": Time(),
    "registry.v1.SignedAuditHead.signature": Sized(64),
    "registry.v1.ExportAuditRequest.after_seq": Whole(0, 2**62),
    "memory.v1.Conversation.title": Line(1024),
    "memory.v1.Conversation.metadata": Labels(32, Text(1024)),
    "memory.v1.TurnUsage.input_tokens": Whole(0),
    "memory.v1.TurnUsage.output_tokens": Whole(0),
    "memory.v1.AppendTurnRequest.messages": Many(500),
    "memory.v1.InvokedRequest.request_messages": Many(500),
    "memory.v1.InvokedRequest.response_messages": Many(500),
    "memory.v1.Message.content": Text(MIB),
    "memory.v1.Message.tool_calls": Many(128),
    "memory.v1.Message.name": NAME,
    "memory.v1.Message.author": NAME,
    "memory.v1.Message.token_count": Whole(0),
    "memory.v1.Message.metadata": Labels(32, Text(1024)),
    "memory.v1.ToolCall.id": NAME,
    "memory.v1.ToolCall.type": NAME,
    "memory.v1.ToolCall.name": NAME,
    "memory.v1.ToolCall.arguments": Text(MIB),
    "memory.v1.Message.parts": Many(64),
    "memory.v1.Part.text": Text(MIB),
    "memory.v1.FileRef.url": Line(MIB),
    "memory.v1.FileRef.media_type": NAME,
    "memory.v1.FileRef.name": NAME,
    "memory.v1.FileRef.size_bytes": Whole(0, 2**53),
    "memory.v1.ImageRef.url": Line(MIB),
    "memory.v1.ImageRef.media_type": NAME,
    "memory.v1.ImageRef.name": NAME,
    "memory.v1.ImageRef.detail": NAME,
    "memory.v1.Data.media_type": NAME,
    "memory.v1.Data.json": Written(MIB, ill=("", "{", "nul", "NaN", "1 2", "'a'", "[" * 100_000)),
    "memory.v1.ListConversationsRequest.updated_from": Time(),
    "memory.v1.ListConversationsRequest.updated_before": Time(earliest_s=-3 * 86400),
    "memory.v1.ListConversationsRequest.metadata": Labels(32, Text(1024)),
    "memory.v1.GetMessageRequest.seq": SEQ,
    "memory.v1.ListMessagesRequest.from_seq": Whole(0, 2**53),
    "memory.v1.ReadWindowRequest.token_count_max": Whole(0, 1_000_000),
    "memory.v1.EditMessageRequest.seq": SEQ,
    "memory.v1.EditMessageRequest.token_count": Whole(0, 10**9),
    "memory.v1.EditMessageRequest.expected_revision": Whole(0),
    "memory.v1.EditMessageRequest.reason": Line(1024),
    "memory.v1.NewContent.text": Text(MIB),
    "memory.v1.RedactMessageRequest.seq": SEQ,
    "memory.v1.RedactMessageRequest.replacement": Text(1024),
    "memory.v1.RedactMessageRequest.reason": Line(1024),
    "memory.v1.DeleteMessageRequest.seq": SEQ,
    "memory.v1.DeleteMessageRequest.expected_revision": Whole(0),
    "memory.v1.DeleteMessageRequest.reason": Line(1024),
    "memory.v1.PopTurnRequest.reason": Line(1024),
    "memory.v1.ListRevisionsRequest.seq": SEQ,
    "memory.v1.ForkConversationRequest.at_seq": Whole(0, 2**53),
    "memory.v1.ForkConversationRequest.title": Line(1024),
    "memory.v1.ForkConversationRequest.metadata": Labels(32, Text(1024)),
    "memory.v1.BeginTurnRequest.messages": Many(250),
    "memory.v1.BeginTurnRequest.lease_duration": Span(900),
    "memory.v1.BeginTurnRequest.holder": NAME,
    "memory.v1.BeginTurnRequest.queue_wait": Span(900),
    "memory.v1.HeartbeatTurnRequest.fence": Whole(1),
    "memory.v1.HeartbeatTurnRequest.partial_messages": Many(250),
    "memory.v1.HeartbeatTurnRequest.lease_duration": Span(900),
    "memory.v1.CommitTurnRequest.fence": Whole(1),
    "memory.v1.CommitTurnRequest.response_messages": Many(500),
    "memory.v1.AbortTurnRequest.fence": Whole(1),
    "memory.v1.AbortTurnRequest.partial_messages": Many(250),
    "memory.v1.AbortTurnRequest.reason": Line(1024),
    "memory.v1.OwedUsage.event_time": Time(),
    "memory.v1.ListUnrecordedUsageRequest.min_age": Span(3600),
    "memory.v1.AcknowledgeUsageRequest.turns": Many(500),
    "memory.v1.GetDeadLetterRequest.payload_hash": HEXADECIMAL,
    "memory.v1.ReplayDeadLetterRequest.payload_hash": HEXADECIMAL,
    "memory.v1.ReplayDeadLetterRequest.reason": Line(1024),
    "memory.v1.DiscardDeadLetterRequest.payload_hash": HEXADECIMAL,
    "memory.v1.DiscardDeadLetterRequest.reason": Line(1024),
    "memory.v1.AuditConversationsRequest.sample_size": Whole(0, 500),
    "memory.v1.WatchConversationRequest.after_seq": Whole(0, 2**63 - 2),
    "memory.v1.WatchConversationRequest.resume_token": Anything(),  # judged together with after_seq: see `together`
    "memory.v1.SearchMessagesRequest.query": Text(1024),
    "memory.v1.SearchMessagesRequest.start_time": Time(),
    "memory.v1.SearchMessagesRequest.end_time": Time(earliest_s=-2 * 86400),
    "memory.v1.SearchMessagesRequest.around": Whole(0, 10),
    "memory.v1.Document.title": Line(1024),
    "memory.v1.Document.url": Line(2048),
    "memory.v1.Document.media_type": NAME,
    "memory.v1.Document.metadata": Labels(32, Text(1024)),
    "memory.v1.ReadWindowRequest.message_count_max": Whole(0, 500),
    "memory.v1.ReadWindowRequest.thread_token": Anything(),  # judged together with read_level: see `together`
    "memory.v1.InvokingRequest.message_count_max": Whole(0, 500),
    "memory.v1.InvokingRequest.token_count_max": Whole(0, 1_000_000),
    "memory.v1.InvokingRequest.thread_token": Anything(),
    "memory.v1.UpdatePreferencesRequest.set": Labels(200, Text(4096)),
    "memory.v1.UpdatePreferencesRequest.remove": Several(None, NAME),
    "memory.v1.Summary.first_seq": Whole(1),
    "memory.v1.Summary.last_seq": Whole(1),
    "memory.v1.Summary.text": Text(256 * KIB),
    "memory.v1.Summary.token_count": Whole(0),
    "memory.v1.Summary.model": NAME,
    "memory.v1.Summary.author": NAME,
    "memory.v1.Summary.metadata": Labels(32, Text(1024)),
    "memory.v1.ToolRun.name": NAME,
    "memory.v1.ToolRun.arguments": Text(MIB),
    "memory.v1.ToolRun.attempts_max": Whole(0, 100),
    "memory.v1.ToolRun.backoff": Span(3600),
    "memory.v1.ToolRun.metadata": Labels(32, Text(1024)),
    "memory.v1.ClaimToolRunRequest.names": Several(20, NAME),
    "memory.v1.ClaimToolRunRequest.holder": NAME,
    "memory.v1.ClaimToolRunRequest.lease_duration": Span(3600),
    "memory.v1.HeartbeatToolRunRequest.lease_duration": Span(3600),
    "memory.v1.CompleteToolRunRequest.result": Text(MIB),
    "memory.v1.FailToolRunRequest.error": Text(64 * KIB),
    "memory.v1.RetryToolRunRequest.delay": Span(86400),
    **{
        f"memory.v1.{name}ToolRunRequest.version": Whole(1)
        for name in ("Claim", "Heartbeat", "Complete", "Fail", "Cancel", "Retry")
    },
    **{f"memory.v1.{name}ToolRunRequest.attempt": Whole(1, 100) for name in ("Heartbeat", "Complete", "Fail")},
    "memory.v1.ListToolRunsRequest.name": NAME,
    "memory.v1.Checkpoint.line": NAME,
    "memory.v1.Checkpoint.data": Blob(3 * MIB),
    "memory.v1.Checkpoint.content_type": NAME,
    "memory.v1.Checkpoint.metadata": Labels(32, Text(1024)),
    "memory.v1.GetCheckpointRequest.line": NAME,
    "memory.v1.ListCheckpointsRequest.line": NAME,
    "memory.v1.ForkCheckpointRequest.new_line": NAME,
    "memory.v1.DeleteCheckpointsRequest.line": NAME,
    "memory.v1.DeleteCheckpointsRequest.keep_newest": Whole(1, 100_000),
    "memory.v1.AppendEventsRequest.events": Many(100),
    "memory.v1.Event.kind": NAME,
    "memory.v1.Event.payload": Text(64 * KIB),
    "memory.v1.ListEventsRequest.after_offset": Whole(0),
    "memory.v1.ListEventsRequest.kind": NAME,
    "memory.v1.ImportConversationsRequest.chunk": Anything(),  # in the first request it is the header that is missing
    "memory.v1.ImportHeader.first_line": Whole(0),
    "memory.v1.ExportConversationsRequest.thread_ids": Several(500, NAME),
    "memory.v1.ExportConversationsRequest.updated_from": Time(),
    "memory.v1.ExportConversationsRequest.updated_before": Time(earliest_s=-10 * 86400),
    "memory.v1.CreateConversationRequest.erased_epoch": Whole(0),
    "memory.v1.SetRetentionRequest.days": Whole(0, 36_500),
    "router.v1.BatchResolveRequest.pairs": Many(500),
    "router.v1.ResolveRequest.operation_id": Line(250),
    "router.v1.UserAgent.operation_id": Line(250),
    "router.v1.OperationCost.messages": Whole(0, 10**15),
    "router.v1.OperationCost.tokens": Whole(0, 10**15),
    "router.v1.OperationCost.micros": Whole(0, 10**15),
    "router.v1.SettleOperationRequest.operation_id": Line(250),
    "router.v1.SettleOperationRequest.operation_time": Time(earliest_s=-100 * YEAR_S, latest_s=2 * 3600),
    "router.v1.ReleaseOperationRequest.operation_id": Line(250),
    "router.v1.ReportOutcomeRequest.outcomes": Many(500),
    "router.v1.Outcome.target_name": Line(63),
    "router.v1.Outcome.generation": Whole(1),
    "router.v1.Outcome.latency": Span(3600),
    "router.v1.PublishRequest.events": Many(500),
    "router.v1.AgentEvent.type": NAME,
    "router.v1.AgentEvent.content_type": NAME,
    "router.v1.AgentEvent.payload": Blob(64 * KIB),
    "router.v1.EventPlace.log_epoch": NAME,
    "router.v1.EventPlace.offset": Whole(0, 2**53),
    "router.v1.SubscribeOpen.agents": Many(1000),
    "router.v1.SubscribeOpen.credits": Whole(0, 1_000_000),
    "router.v1.ListEventsRequest.log_epoch": NAME,
    "router.v1.ListEventsRequest.after_offset": Whole(0, 2**53),
    "router.v1.PodHello.address": NAME,
    "router.v1.PodHello.session_count": Whole(0, 100_000),
    "router.v1.CloseSessionRequest.fence": Whole(0),
    "router.v1.SendToSessionRequest.payload": Blob(64 * KIB),
    "router.v1.DrainPodRequest.reason": NAME,
    "router.v1.RunRequest.operation_id": Line(250),
    "router.v1.RunRequest.message": Text(MIB),
    "router.v1.RunRequest.instructions": Text(64 * KIB),
    "router.v1.RunRequest.tools": Many(128),
    "router.v1.RunRequest.tool_results": Many(128),
    "router.v1.RunRequest.queue_wait": Span(900),
    "router.v1.Tool.name": Formed(["", "a b", "é", "a.b"], 64),
    "router.v1.Tool.description": Text(16 * KIB),
    "router.v1.Tool.parameters_json": Written(64 * KIB, ["{", "[]", "1", "NaN", "{} x"]),
    "router.v1.AttachRequest.operation_id": Line(250),
    "router.v1.AttachRequest.text_offset": Whole(0, MIB),
    "router.v1.CancelTurnRequest.operation_id": Line(250),
}

_BY_NAME: Mapping[str, Rule] = {"etag": Etag(), "page_token": PageToken(), "page_size": Whole(0, 500), "update_mask": Mask()}


def rule_of(field: FieldDescriptor) -> Rule:
    """The rule of a field; KeyError for one that stands in no table and whose name and type do not tell."""
    found = FIELDS.get(field.full_name.removeprefix("twofold.")) or _BY_NAME.get(field.name)
    if found is not None:
        return found
    if field.type == FieldDescriptor.TYPE_STRING and field.name.endswith("_id"):
        return NAME
    if field.type == FieldDescriptor.TYPE_BYTES and field.name.endswith("_token"):
        return Token()
    if field.type == FieldDescriptor.TYPE_ENUM:
        return Choice()
    if field.type in (FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_MESSAGE):
        return Anything()
    raise KeyError(f"{field.full_name} has no rule: add one to FIELDS in tests/house/rules.py")
