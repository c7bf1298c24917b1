"""Bad requests whose fields are each well and break a rule together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.house.rules import KIB, MIB, YEAR_S
from twofold.memory.v1.message_pb2 import Part, ReadLevel, Role
from twofold.registry.v1.agent_pb2 import AgentState
from twofold.registry.v1.pod_pb2 import PodState
from twofold.registry.v1.session_pb2 import SessionEventKind
from twofold.registry.v1.user_pb2 import Role as UserRole
from twofold.router.v1.event_pb2 import AgentEvent


@dataclass(frozen=True)
class Together:
    """One change of the example, and the fields that may be named for it."""

    what: str
    fields: Sequence[str]
    change: Callable[[Any], object]
    reasons: Sequence[str] = ("REASON_INVALID_FIELD",)


def _level(level: ReadLevel.ValueType, token: bytes) -> Callable[[Any], object]:
    def change(request: Any) -> None:
        request.read_level, request.thread_token = level, token

    return change


def _resuming(token: bytes) -> Callable[[Any], object]:
    def change(request: Any) -> None:
        request.ClearField("after_seq")
        request.resume_token = token

    return change


def _over_3_mib(name: str) -> Callable[[Any], object]:
    def change(request: Any) -> None:
        messages = getattr(request, name)
        del messages[:]
        for _ in range(3):
            messages.add(role=Role.ROLE_USER, content="x" * MIB)
        messages.add(role=Role.ROLE_USER, content="x")

    return change


_TOKENS = (
    Together("AT_LEAST without a token", ["thread_token"], _level(ReadLevel.READ_LEVEL_AT_LEAST, b"")),
    Together("a token with VERIFIED", ["thread_token"], _level(ReadLevel.READ_LEVEL_VERIFIED, b"x")),
    Together("a token with ANY", ["thread_token"], _level(ReadLevel.READ_LEVEL_ANY, b"x")),
    *(
        Together(what, ["thread_token"], _level(ReadLevel.READ_LEVEL_AT_LEAST, token), ["REASON_INVALID_TOKEN"])
        for what, token in (("no token", b"garbage"), ("NUL for a token", b"\0"), ("a long token", b"x" * 4096))
    ),
)


def _messages(name: str, *, plain: int, calling: tuple[str, int], result: tuple[str, int]) -> Sequence[Together]:
    """Of the three messages of the example: a plain one, one that calls a tool, and the tool's result."""
    asked = f"{name}[{plain}]"
    called, answered = f"{calling[0]}[{calling[1]}]", f"{result[0]}[{result[1]}]"
    return (
        Together(
            "no content and no tool calls",
            [f"{asked}.content"],
            lambda request: getattr(request, name)[plain].ClearField("content"),
        ),
        Together(
            "tool calls of a user",
            [f"{called}.tool_calls"],
            lambda request: setattr(getattr(request, calling[0])[calling[1]], "role", Role.ROLE_USER),
        ),
        Together(
            "a result without its call",
            [f"{answered}.tool_call_id"],
            lambda request: getattr(request, result[0])[result[1]].ClearField("tool_call_id"),
        ),
        Together(
            "a user's message with a call's id",
            [f"{asked}.tool_call_id"],
            lambda request: setattr(getattr(request, name)[plain], "tool_call_id", "call-1"),
        ),
        Together(
            "more than 1 MiB beside the content",
            [called, f"{called}.tool_calls", f"{called}.tool_calls[0].arguments", f"{called}.tool_calls[1].arguments"],
            lambda request: _two_large_calls(getattr(request, calling[0])[calling[1]]),
        ),
    )


def _two_large_calls(message: Any) -> None:
    message.tool_calls[0].arguments = "x" * (600 * 1024)
    message.tool_calls.add(id="call-2", type="function", name="clock", arguments="x" * (600 * 1024))


def _named(request: Any, names: Sequence[str]) -> None:
    request.ClearField("tool_run_id")
    request.ClearField("version")
    request.names.extend(names)


def _many_large_events(request: Any) -> None:
    for _ in range(48):
        request.events.add(kind="large", payload="x" * (64 * KIB))


TOGETHER: Mapping[str, Sequence[Together]] = {
    "twofold.registry.v1.UserService.CreateUser": [
        Together("a person without e-mail address", ["user.email"], lambda request: request.user.ClearField("email")),
    ],
    "twofold.registry.v1.UserService.UpdateUser": [
        Together("no user", ["user.user_id"], lambda request: request.user.ClearField("user_id")),
        Together("a person without e-mail address", ["user.email"], lambda request: request.user.ClearField("email")),
        Together("no role", ["user.role"], lambda request: setattr(request.user, "role", UserRole.ROLE_UNSPECIFIED)),
    ],
    "twofold.memory.v1.SyncService.AuditConversations": [
        Together("no workspace", ["workspace_id"], lambda request: request.ClearField("workspace_id")),
        Together("a sample of one", ["sample_size"], lambda request: setattr(request, "sample_size", 5)),
    ],
    "twofold.registry.v1.WorkspaceService.UpdateWorkspace": [
        Together("no workspace", ["workspace.workspace_id"], lambda request: request.workspace.ClearField("workspace_id")),
    ],
    "twofold.registry.v1.AgentService.UpdateAgent": [
        Together("no agent", ["agent.agent_id"], lambda request: request.agent.ClearField("agent_id")),
        Together(
            "no state", ["agent.state"], lambda request: setattr(request.agent, "state", AgentState.AGENT_STATE_UNSPECIFIED)
        ),
    ],
    "twofold.registry.v1.AuditService.ListAuditEntries": [
        Together("an id of no kind", ["resource_id", "resource_kind"], lambda request: request.ClearField("resource_kind")),
        Together("an empty span", ["end_time"], lambda request: request.end_time.CopyFrom(request.start_time)),
        Together("revisions backwards", ["last_revision"], lambda request: setattr(request, "first_revision", 1001)),
    ],
    "twofold.registry.v1.AuditService.VerifyAudit": [
        Together("a place without its hash", ["after_hash"], lambda request: request.ClearField("after_hash")),
        Together("a hash without its place", ["after_seq"], lambda request: request.ClearField("after_seq")),
        Together("a head from before", ["signed_head.seq"], lambda request: setattr(request, "after_seq", 3)),
        Together(
            "a head of another workspace",
            ["signed_head.workspace_id"],
            lambda request: setattr(request.signed_head, "workspace_id", "another"),
        ),
    ],
    "twofold.registry.v1.UsageService.GetUsage": [
        Together("an empty span", ["end_time"], lambda request: request.end_time.CopyFrom(request.start_time)),
    ],
    "twofold.registry.v1.UsageService.QueryUsage": [
        Together("an empty span", ["end_time"], lambda request: request.end_time.CopyFrom(request.start_time)),
    ],
    "twofold.registry.v1.BillingService.SetCaps": [
        Together(
            "a warning behind the stop", ["caps.tokens.soft"], lambda request: setattr(request.caps.tokens, "soft", 101)
        ),
    ],
    "twofold.registry.v1.BillingService.CreateAdjustment": [
        Together(
            "nothing",
            ["adjustment.amount.amount_micros"],
            lambda request: setattr(request.adjustment.amount, "amount_micros", 0),
        ),
    ],
    "twofold.memory.v1.ConversationService.UpdateConversation": [
        Together("no thread", ["conversation.thread_id"], lambda request: request.conversation.ClearField("thread_id")),
    ],
    "twofold.memory.v1.ConversationService.ListConversations": [
        Together("an empty span", ["updated_before"], lambda request: request.updated_before.CopyFrom(request.updated_from)),
    ],
    "twofold.memory.v1.ConversationService.ReadWindow": _TOKENS,
    "twofold.memory.v1.RevisionService.EditMessage": [
        Together(
            "nothing to change",
            ["content"],
            lambda request: (request.ClearField("content"), request.ClearField("token_count")),
        ),
        Together("content that is nothing", ["content"], lambda request: request.content.ClearField("text")),
        Together("no parts", ["content.parts.parts"], lambda request: request.content.parts.SetInParent()),
        Together(
            "65 parts",
            ["content.parts.parts"],
            lambda request: request.content.parts.parts.extend([Part(text="x")] * 65),
        ),
    ],
    "twofold.memory.v1.ConversationService.AppendTurn": [
        *_messages("messages", plain=0, calling=("messages", 1), result=("messages", 2)),
        Together("more than 3 MiB in all", ["messages"], _over_3_mib("messages")),
        Together(
            "content and parts", ["messages[3].content"], lambda request: setattr(request.messages[3], "content", "Look:")
        ),
        Together("a part that is nothing", ["messages[3].parts[0]"], lambda request: request.messages[3].parts[0].Clear()),
        Together(
            "a file that is nowhere",
            ["messages[3].parts[1].file.url"],
            lambda request: request.messages[3].parts[1].file.Clear(),
        ),
        Together(
            "an image that is nowhere",
            ["messages[3].parts[2].image.url"],
            lambda request: request.messages[3].parts[2].image.Clear(),
        ),
    ],
    "twofold.memory.v1.TurnService.BeginTurn": [
        Together("more than 2 MiB in all", ["messages"], _over_3_mib("messages")),
    ],
    "twofold.memory.v1.TurnService.HeartbeatTurn": [
        Together("more than 1 MiB in all", ["partial_messages"], _over_3_mib("partial_messages")),
    ],
    "twofold.memory.v1.TurnService.CommitTurn": [
        Together("more than 3 MiB in all", ["response_messages"], _over_3_mib("response_messages")),
    ],
    "twofold.memory.v1.TurnService.AbortTurn": [
        Together("more than 1 MiB in all", ["partial_messages"], _over_3_mib("partial_messages")),
    ],
    "twofold.memory.v1.WatchService.WatchConversation": [
        Together("two places to begin at", ["after_seq"], lambda request: setattr(request, "from_end", True)),
        Together("a place and a token", ["resume_token"], lambda request: setattr(request, "resume_token", b"x")),
        *(
            Together(what, ["resume_token"], _resuming(token), ["REASON_INVALID_TOKEN"])
            for what, token in (("no token", b"garbage"), ("NUL for a token", b"\0"), ("a long token", b"x" * 4096))
        ),
    ],
    "twofold.memory.v1.SearchService.SearchMessages": [
        Together("no words", ["query"], lambda request: setattr(request, "query", '!!! ""')),
        Together("an empty span", ["end_time"], lambda request: request.end_time.CopyFrom(request.start_time)),
    ],
    "twofold.memory.v1.ContextService.Invoking": _TOKENS,
    "twofold.memory.v1.ContextService.Invoked": [
        *_messages("request_messages", plain=0, calling=("response_messages", 0), result=("response_messages", 1)),
        Together("more than 3 MiB in all", ["request_messages", "response_messages"], _over_3_mib("response_messages")),
        Together(
            "no messages at all",
            ["request_messages", "response_messages"],
            lambda request: (request.ClearField("request_messages"), request.ClearField("response_messages")),
        ),
    ],
    "twofold.memory.v1.PreferenceService.UpdatePreferences": [
        Together(
            "nothing to change", ["set", "remove"], lambda request: (request.ClearField("set"), request.ClearField("remove"))
        ),
        Together(
            "more than 200 in all",
            ["set", "remove"],
            lambda request: request.remove.extend(f"key-{number}" for number in range(199)),
        ),
        Together("a key both set and removed", ["set", "remove"], lambda request: request.remove.append("tone")),
        Together(
            "an expiry of a key that is not set",
            ["expire_times"],
            lambda request: request.expire_times["preferred_language"].GetCurrentTime(),
        ),
        Together(
            "an expiry that is no time",
            ["expire_times"],
            lambda request: setattr(request.expire_times["tone"], "seconds", 10_000 * YEAR_S),
        ),
        Together(
            "a negative version", ["expected_versions"], lambda request: request.expected_versions.update({"tone": -1})
        ),
        Together(
            "a version of a key that is none",
            ["expected_versions"],
            lambda request: request.expected_versions.update({"": 1}),
        ),
        Together(
            "too many versions",
            ["expected_versions"],
            lambda request: request.expected_versions.update({f"key-{number}": 0 for number in range(200)}),
        ),
    ],
    "twofold.memory.v1.SummaryService.PutSummary": [
        Together("a range upside down", ["summary.last_seq"], lambda request: setattr(request.summary, "first_seq", 2)),
    ],
    "twofold.memory.v1.ToolRunService.ClaimToolRun": [
        Together("both a run and names", ["names"], lambda request: request.names.append("clock")),
        Together("a version of no run", ["version"], lambda request: request.ClearField("tool_run_id")),
        Together("neither a run nor names", ["names"], lambda request: _named(request, [])),
        Together("too many names", ["names"], lambda request: _named(request, [f"n{number}" for number in range(21)])),
        Together("an empty name", ["names"], lambda request: _named(request, [""])),
        Together("a name that is none", ["names"], lambda request: _named(request, ["a\nb"])),
    ],
    "twofold.registry.v1.PodService.BatchCheckPods": [
        Together("nobody to ask about", ["pods"], lambda request: request.ClearField("pods")),
    ],
    "twofold.registry.v1.PodService.ListPods": [
        Together("pods that nobody knows", ["state"], lambda request: setattr(request, "state", PodState.POD_STATE_UNKNOWN)),
    ],
    "twofold.registry.v1.PodService.MarkPodDead": [
        Together(
            "an incarnation that was never given",
            ["incarnation"],
            lambda request: setattr(request.incarnation, "epoch", 2**62),
        ),
    ],
    "twofold.registry.v1.SessionHistoryService.RecordSessions": [
        Together("no events at all", ["events"], lambda request: request.ClearField("events")),
        Together(
            "a close without a reason",
            ["events[0].close_reason"],
            lambda request: request.events[0].ClearField("close_reason"),
        ),
        Together(
            "an open with a reason",
            ["events[0].close_reason"],
            lambda request: setattr(request.events[0], "kind", SessionEventKind.SESSION_EVENT_KIND_OPENED),
        ),
    ],
    "twofold.router.v1.EventService.Publish": [
        Together("no events at all", ["events"], lambda request: request.ClearField("events")),
        Together(
            "more than 1 MiB in all",
            ["events"],
            lambda request: request.events.extend([AgentEvent(type="large", payload=b"x" * 64 * KIB)] * 17),
        ),
    ],
    "twofold.router.v1.EventService.ListEvents": [
        Together("an offset of no epoch", ["after_offset"], lambda request: setattr(request, "after_offset", 1)),
    ],
    "twofold.router.v1.EventService.Subscribe": [
        Together("caught up with nobody", ["open.agents"], lambda request: request.open.ClearField("agents")),
        Together(
            "an agent twice",
            ["open.agents[1].agent_id"],
            lambda request: setattr(request.open.agents[1], "agent_id", request.open.agents[0].agent_id),
        ),
        Together("nothing that opens", ["open"], lambda request: request.ClearField("open")),
        Together("credits only", ["open"], lambda request: setattr(request.credit, "events", 1)),
    ],
    "twofold.memory.v1.EventLogService.AppendEvents": [
        Together("no events at all", ["events"], lambda request: request.ClearField("events")),
        Together("more than 3 MiB in all", ["events"], lambda request: _many_large_events(request)),
    ],
}
