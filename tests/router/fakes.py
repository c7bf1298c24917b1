"""Registry and memory as the router sees them: real gRPC servers over dictionaries, with knobs for what can go wrong."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration
from prometheus_client import CollectorRegistry

from tests.router.changes import FakeChanges
from tests.router.fake_turns import FakeTurns
from twofold.memory.v1 import (
    context_pb2,
    context_pb2_grpc,
    conversation_pb2,
    conversation_pb2_grpc,
    document_pb2,
    message_pb2,
    preference_pb2,
    turn_pb2_grpc,
)
from twofold.registry.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    billing_pb2,
    change_pb2,
    change_pb2_grpc,
    permission_pb2,
    permission_pb2_grpc,
    terms_pb2,
    terms_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
    workspace_pb2,
)
from twofold_chassis import call, fields
from twofold_chassis.refusals import AlreadyExists, FailedPrecondition, NotFound, Reason, Refusal, RequestReused
from twofold_chassis.revisions import revision_of
from twofold_chassis.server import Face, serving
from twofold_chassis.settings import ListenSettings, LogSettings
from twofold_memory.wire import messages as memory_wire

Pair = tuple[str, str]

# The registry stores what an agent's settings leave out.
_DEFAULTS = {"context_messages_max": 20, "context_tokens_max": 8_000, "first_token_timeout": 30, "turn_timeout": 300}


_KINDS = {
    permission_pb2.CHECK_REASON_ROLE: change_pb2.WATCH_ITEM_KIND_USER,
    permission_pb2.CHECK_REASON_USER_UNKNOWN: change_pb2.WATCH_ITEM_KIND_USER,
    permission_pb2.CHECK_REASON_WORKSPACE_UNKNOWN: change_pb2.WATCH_ITEM_KIND_WORKSPACE,
    permission_pb2.CHECK_REASON_AGENT_UNKNOWN: change_pb2.WATCH_ITEM_KIND_AGENT,
}
_NAMES = {
    change_pb2.WATCH_ITEM_KIND_WORKSPACE: (),
    change_pb2.WATCH_ITEM_KIND_USER: ("user_id",),
    change_pb2.WATCH_ITEM_KIND_AGENT: ("agent_id",),
    change_pb2.WATCH_ITEM_KIND_PERMISSION: ("user_id", "agent_id"),
}


class Verdict(NamedTuple):
    """What is said of a pair, and until when."""

    reason: permission_pb2.CheckReason.ValueType
    ends_s: float | None = None


class WorkspaceUnknown(NotFound):
    reason = Reason.REASON_WORKSPACE_UNKNOWN


class AgentUnknown(NotFound):
    reason = Reason.REASON_AGENT_UNKNOWN


class ConversationUnknown(NotFound):
    reason = Reason.REASON_CONVERSATION_UNKNOWN


class RouterNotRegistered(FailedPrecondition):
    reason = Reason.REASON_ROUTER_NOT_REGISTERED


class TurnUnknown(NotFound):
    reason = Reason.REASON_TURN_UNKNOWN


class EventReused(AlreadyExists):
    reason = Reason.REASON_EVENT_REUSED


@dataclass
class Calls:
    """What was asked, by whom, and what the next calls are refused with."""

    seen: list[tuple[str, Any, str, str]] = field(default_factory=list)
    refusals: dict[str, list[Refusal]] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    late: dict[str, asyncio.Event] = field(default_factory=dict)  # done at once, and answered only then
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def enter(self, rpc: str, request: Any) -> None:
        current = call.current()
        self.seen.append((rpc, request, current.identity.actor, current.request_id))
        self._news.set()
        self._news = asyncio.Event()
        if rpc in self.gates:
            await self.gates[rpc].wait()
        if self.refusals.get(rpc):
            raise self.refusals[rpc].pop(0)

    async def leave(self, rpc: str) -> None:
        if rpc in self.late:
            await self.late[rpc].wait()

    async def came(self, rpc: str, count: int = 1) -> None:
        """Returns when the rpc has been asked so often."""
        async with asyncio.timeout(20):
            while len(self.of(rpc)) < count:
                await self._news.wait()

    def refuse(self, rpc: str, refusal: Refusal, *, times: int = 1) -> None:
        self.refusals[rpc] = [refusal] * times

    def of(self, rpc: str) -> list[Any]:
        return [request for name, request, _, _ in self.seen if name == rpc]


class FakeRegistry(
    permission_pb2_grpc.PermissionServiceServicer,
    agent_pb2_grpc.AgentServiceServicer,
    usage_pb2_grpc.UsageServiceServicer,
    terms_pb2_grpc.TermsServiceServicer,
):
    """Agents, verdicts, terms and usage events in dictionaries, and `changes`: every change of the first two, in order."""

    def __init__(self) -> None:
        self.changes = FakeChanges()  # type: ignore[abstract]  # only what the router asks
        self.reset()

    def reset(self) -> None:
        """As new, but that the history goes on: a router lives longer than a test. Each test has a workspace of its own."""
        self.calls = Calls()
        self.agents: dict[Pair, agent_pb2.Agent] = {}
        self.verdicts: dict[tuple[str, str, str], Verdict] = {}
        self.terms: dict[Pair, terms_pb2.GetTermsResponse] = {}
        self.workspaces_are_unknown = False
        self.events: dict[Pair, usage_pb2.UsageEvent] = {}
        self.changes.reset()

    @property
    def token(self) -> bytes:
        return self.changes.revision.token()

    def publish(self, workspace_id: str, agent_id: str, url: str, **settings: Any) -> None:
        settings = {**_DEFAULTS, "model": agent_id, **settings}
        for name in ("first_token_timeout", "turn_timeout"):
            settings[name] = _duration(settings[name])
        self.agents[workspace_id, agent_id] = agent_pb2.Agent(
            workspace_id=workspace_id,
            agent_id=agent_id,
            url=url,
            state=agent_pb2.AGENT_STATE_PUBLISHED,
            settings=agent_pb2.AgentSettings(**settings),
            generation=1,
        )
        self._tell(change_pb2.WATCH_ITEM_KIND_AGENT, workspace_id, agent_id=agent_id)

    def move(self, workspace_id: str, agent_id: str, url: str) -> None:
        """Another URL: no permission rests on that."""
        self.agents[workspace_id, agent_id].url = url
        self.agents[workspace_id, agent_id].generation += 1
        self._tell(change_pb2.WATCH_ITEM_KIND_ROUTE, workspace_id, agent_id=agent_id)

    def declare(self, workspace_id: str, agent_id: str, state: agent_pb2.AgentState.ValueType) -> None:
        """Another state. Permissions rest on whether it is gone, on nothing else of it."""
        gone = agent_pb2.AGENT_STATE_GONE in (self.agents[workspace_id, agent_id].state, state)
        self.agents[workspace_id, agent_id].state = state
        kind = change_pb2.WATCH_ITEM_KIND_AGENT if gone else change_pb2.WATCH_ITEM_KIND_ROUTE
        self._tell(kind, workspace_id, agent_id=agent_id)

    def remove(self, workspace_id: str, agent_id: str) -> None:
        """The agent is deleted; what was said of its users is left as it is."""
        del self.agents[workspace_id, agent_id]
        self._tell(change_pb2.WATCH_ITEM_KIND_AGENT, workspace_id, agent_id=agent_id)

    def grant(
        self,
        workspace_id: str,
        user_id: str,
        agent_id: str,
        reason: permission_pb2.CheckReason.ValueType = permission_pb2.CHECK_REASON_GRANT,
        *,
        for_s: float | None = None,
    ) -> None:
        """From now on this is said of the pair; for so long, if it ends by itself."""
        ends_s = None if for_s is None else time.time() + for_s
        self.verdicts[workspace_id, user_id, agent_id] = Verdict(reason, ends_s)
        kind = _KINDS.get(reason, change_pb2.WATCH_ITEM_KIND_PERMISSION)
        named = {"user_id": user_id, "agent_id": agent_id}
        self._tell(kind, workspace_id, **{name: named[name] for name in _NAMES[kind]})

    def revoke(self, workspace_id: str, user_id: str, agent_id: str) -> None:
        """The grant is taken away."""
        self.grant(workspace_id, user_id, agent_id, permission_pb2.CHECK_REASON_NO_GRANT)

    def limit(self, workspace_id: str, *, user_id: str = "", shadow: bool = False, **amounts: int) -> None:
        """These limits are in force now, and no others: for all users of the workspace, or for one."""
        terms = self.terms.setdefault((workspace_id, user_id), terms_pb2.GetTermsResponse())
        del terms.limits[:]
        for name, amount in amounts.items():
            kind = workspace_pb2.LimitKind.Value(f"LIMIT_KIND_{name.upper()}")
            terms.limits.add(kind=kind, amount=amount, shadow=shadow)
        if user_id:
            self._tell(change_pb2.WATCH_ITEM_KIND_USER, workspace_id, user_id=user_id)
        else:
            self._tell(change_pb2.WATCH_ITEM_KIND_PLAN, workspace_id)

    def cap(self, workspace_id: str, state: billing_pb2.CapState.ValueType, month: str) -> None:
        """A cap of the workspace was crossed."""
        terms = self.terms.setdefault((workspace_id, ""), terms_pb2.GetTermsResponse())
        terms.cap_state, terms.cap_month = state, month
        self._tell(change_pb2.WATCH_ITEM_KIND_PLAN, workspace_id)

    def _tell(
        self, kind: change_pb2.WatchItemKind.ValueType, workspace_id: str, *, user_id: str = "", agent_id: str = ""
    ) -> None:
        self.changes.change(change_pb2.WatchItem(kind=kind, workspace_id=workspace_id, user_id=user_id, agent_id=agent_id))

    # What is answered is read when the call comes, and may be late: so it is with a real one.

    async def Check(self, request: permission_pb2.CheckRequest, context: Any) -> permission_pb2.CheckResponse:
        answer = self._checked(request)
        await self.calls.enter("Check", request)
        if isinstance(answer, Refusal):
            raise answer
        return answer

    def _checked(self, request: permission_pb2.CheckRequest) -> permission_pb2.CheckResponse | Refusal:
        if request.router_id and (request.router_id, request.router_incarnation) not in self.changes.registered:
            return RouterNotRegistered("not registered")
        try:
            self.changes.revision.satisfies(revision_of(request.min_revision_token, "min_revision_token"))
        except Refusal as refusal:
            return refusal
        key, now_s = (request.workspace_id, request.user_id, request.agent_id), time.time()
        verdict = self.verdicts.get(key, Verdict(permission_pb2.CHECK_REASON_NO_GRANT))
        reason = verdict.reason
        if verdict.ends_s is not None and verdict.ends_s <= now_s:
            reason = permission_pb2.CHECK_REASON_EXPIRED
        allowed = reason in (permission_pb2.CHECK_REASON_GRANT, permission_pb2.CHECK_REASON_ROLE)
        answer = permission_pb2.CheckResponse(allowed=allowed, reason=reason, revision_token=self.token)
        answer.read_time.FromNanoseconds(round(now_s * 1e9))
        if allowed and verdict.ends_s is not None:
            answer.expire_time.FromNanoseconds(round(verdict.ends_s * 1e9))
        return answer

    async def GetAgent(self, request: agent_pb2.GetAgentRequest, context: Any) -> agent_pb2.GetAgentResponse:
        agent, revision = self.agents.get((request.workspace_id, request.agent_id)), self.changes.revision
        answer = None if agent is None else agent_pb2.GetAgentResponse(agent=agent, revision_token=revision.token())
        await self.calls.enter("GetAgent", request)
        revision.satisfies(revision_of(request.min_revision_token, "min_revision_token"))
        if answer is None:
            raise AgentUnknown("no such agent")
        return answer

    async def GetTerms(self, request: terms_pb2.GetTermsRequest, context: Any) -> terms_pb2.GetTermsResponse:
        revision, answer = self.changes.revision, terms_pb2.GetTermsResponse()
        of_workspace = self.terms.get((request.workspace_id, ""), answer)
        answer.CopyFrom(self.terms.get((request.workspace_id, request.user_id), of_workspace))
        answer.cap_state, answer.cap_month = of_workspace.cap_state, of_workspace.cap_month
        answer.revision_token = revision.token()
        answer.read_time.FromNanoseconds(time.time_ns())
        await self.calls.enter("GetTerms", request)
        revision.satisfies(revision_of(request.min_revision_token, "min_revision_token"))
        if self.workspaces_are_unknown:
            raise WorkspaceUnknown("no such workspace")
        return answer

    async def ReadWindow(
        self, request: usage_pb2.ReadWindowRequest, context: Any
    ) -> AsyncIterator[usage_pb2.ReadWindowResponse]:
        await self.calls.enter("ReadWindow", request)
        part = usage_pb2.ReadWindowResponse()
        part.read_time.FromNanoseconds(time.time_ns())
        cell_s, group = request.cell.seconds, request.group_by
        since_s = request.start_time.seconds // cell_s * cell_s
        for (workspace_id, event_id), event in self.events.items():
            if workspace_id != request.workspace_id or event.event_time.seconds < since_s:
                continue
            cell = part.cells.add(
                messages=event.messages, input_tokens=event.input_tokens, output_tokens=event.output_tokens
            )
            cell.start_time.seconds = event.event_time.seconds // cell_s * cell_s
            cell.user_id = event.user_id if group == usage_pb2.WINDOW_GROUP_USER else ""
            cell.agent_id = event.agent_id if group == usage_pb2.WINDOW_GROUP_AGENT else ""
            if event.event_time.ToNanoseconds() >= time.time_ns() - request.operations_for.ToNanoseconds():
                part.operations.add(operation_id=event_id.rpartition("/")[0], event_time=event.event_time)
        yield part

    async def RecordUsage(self, request: usage_pb2.RecordUsageRequest, context: Any) -> usage_pb2.RecordUsageResponse:
        await self.calls.enter("RecordUsage", request)
        duplicates = [self._record(request.workspace_id, event) for event in request.events]
        return usage_pb2.RecordUsageResponse(duplicates=duplicates)

    def _record(self, workspace_id: str, event: usage_pb2.UsageEvent) -> bool:
        known = self.events.setdefault((workspace_id, event.event_id), event)
        if known != event:
            raise EventReused("another body", event_id=event.event_id)
        return known is not event


class FakeMemory(conversation_pb2_grpc.ConversationServiceServicer, context_pb2_grpc.ContextServiceServicer):
    """Turns in a dictionary per conversation, and `open_turns`: those that are not closed yet."""

    def __init__(self) -> None:
        self.open_turns = FakeTurns(self)
        self.reset()

    def reset(self) -> None:
        self.open_turns.reset()
        self.calls = Calls()
        self.owners: dict[Pair, str] = {}
        self.messages: dict[Pair, list[message_pb2.Message]] = {}
        self.usages: dict[tuple[str, str, str], conversation_pb2.TurnUsage] = {}
        self.preferences: dict[Pair, dict[str, str]] = {}
        self.summaries: dict[Pair, str] = {}
        self.documents: dict[Pair, list[document_pb2.Document]] = {}

    def require_owner(self, key: Pair, user_id: str) -> None:
        """Refuses another user's conversation."""
        if self.owners.get(key, user_id) != user_id:
            raise ConversationUnknown("no such conversation")

    def turn(self, key: Pair, turn_id: str) -> list[message_pb2.Message]:
        """The messages of a turn that is stored."""
        return [message for message in self.messages.get(key, []) if message.turn_id == turn_id]

    async def Invoking(self, request: context_pb2.InvokingRequest, context: Any) -> context_pb2.InvokingResponse:
        await self.calls.enter("Invoking", request)
        key = (request.workspace_id, request.thread_id)
        if self.owners.get(key, request.user_id) != request.user_id:
            raise ConversationUnknown("no such conversation")
        messages = self.messages.get(key, [])
        if messages and messages[-1].tool_calls and not request.with_open_calls:
            messages = messages[:-1]  # as memory does
        preferences = sorted(self.preferences.get((request.workspace_id, request.user_id), {}).items())
        response = context_pb2.InvokingResponse(
            messages=messages,
            preferences=[preference_pb2.Preference(key=name, value=value) for name, value in preferences],
            text=_text(messages, preferences),
            documents=self.documents.get(key, []),
        )
        if key in self.summaries:
            response.summary.text = self.summaries[key]
        if request.thread_id:
            response.source = message_pb2.READ_SOURCE_L1
            response.completeness = message_pb2.COMPLETENESS_COMPLETE
        return response

    async def GetTurn(self, request: conversation_pb2.GetTurnRequest, context: Any) -> conversation_pb2.GetTurnResponse:
        await self.calls.enter("GetTurn", request)
        key = (request.workspace_id, request.thread_id)
        if key not in self.messages or self.owners.get(key, request.user_id) != request.user_id:
            raise ConversationUnknown("no such conversation")
        messages = [message for message in self.messages[key] if message.turn_id == request.turn_id]
        if not messages:
            raise TurnUnknown("no such turn")
        usage = self.usages.get((*key, request.turn_id))
        return conversation_pb2.GetTurnResponse(messages=messages, usage=usage, thread_token=b"token")

    async def Invoked(self, request: context_pb2.InvokedRequest, context: Any) -> context_pb2.InvokedResponse:
        await self.calls.enter("Invoked", request)
        memory_wire.exchange(request)  # judged as memory does
        key = (request.workspace_id, request.thread_id)
        self.owners.setdefault(key, request.user_id)
        kept = self.messages.setdefault(key, [])
        turn = [message for message in kept if message.turn_id == request.request_id]
        given = [*request.request_messages, *request.response_messages]
        if turn and [message.content for message in turn] != [message.content for message in given]:
            raise RequestReused("another body")
        duplicate = bool(turn)
        if not turn:
            turn = _stored(request, len(kept) + 1)
            kept.extend(turn)
            if request.HasField("usage"):
                self.usages[(*key, request.request_id)] = request.usage
        await self.calls.leave("Invoked")
        return context_pb2.InvokedResponse(
            turn_id=request.request_id,
            first_seq=turn[0].seq,
            last_seq=turn[-1].seq,
            durability=message_pb2.DURABILITY_COMMITTED,
            duplicate=duplicate,
            thread_token=b"token",
            create_time=turn[0].create_time,
        )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration


def _stored(request: context_pb2.InvokedRequest, first_seq: int) -> list[message_pb2.Message]:
    now = fields.timestamp(datetime.now(UTC))
    stored = []
    for index, message in enumerate([*request.request_messages, *request.response_messages]):
        copy = message_pb2.Message(seq=first_seq + index, turn_id=request.request_id, turn_index=index, create_time=now)
        copy.MergeFrom(message)
        stored.append(copy)
    return stored


def _text(messages: list[message_pb2.Message], preferences: list[Pair]) -> str:
    roles = {message_pb2.ROLE_USER: "user", message_pb2.ROLE_ASSISTANT: "assistant", message_pb2.ROLE_TOOL: "tool"}
    said = [f"{roles[message.role]}: {message.content}" for message in messages]
    told = [f"{key}: {value}" for key, value in preferences]
    blocks = [("Previous conversation:", said), ("User preferences:", told)]
    return "\n\n".join("\n".join([heading, *lines]) for heading, lines in blocks if lines)


@contextlib.asynccontextmanager
async def registry_server(registry: FakeRegistry, *, port: int = 0) -> AsyncIterator[str]:
    """Serves the fake registry; gives its target."""
    faces = [
        Face(
            "twofold.registry.v1.PermissionService",
            registry,
            permission_pb2_grpc.add_PermissionServiceServicer_to_server,
        ),
        Face("twofold.registry.v1.AgentService", registry, agent_pb2_grpc.add_AgentServiceServicer_to_server),
        Face("twofold.registry.v1.ChangeService", registry.changes, change_pb2_grpc.add_ChangeServiceServicer_to_server),
        Face("twofold.registry.v1.TermsService", registry, terms_pb2_grpc.add_TermsServiceServicer_to_server),
        Face("twofold.registry.v1.UsageService", registry, usage_pb2_grpc.add_UsageServiceServicer_to_server),
    ]
    async with _server(faces, port) as target:
        yield target


@contextlib.asynccontextmanager
async def memory_server(memory: FakeMemory) -> AsyncIterator[str]:
    """Serves the fake memory; gives its target."""
    faces = [
        Face(
            "twofold.memory.v1.ConversationService",
            memory,
            conversation_pb2_grpc.add_ConversationServiceServicer_to_server,
        ),
        Face("twofold.memory.v1.ContextService", memory, context_pb2_grpc.add_ContextServiceServicer_to_server),
        Face("twofold.memory.v1.TurnService", memory.open_turns, turn_pb2_grpc.add_TurnServiceServicer_to_server),
    ]
    async with _server(faces, 0) as target:
        yield target


@contextlib.asynccontextmanager
async def _server(faces: list[Face], port: int) -> AsyncIterator[str]:
    async def well() -> bool:
        return True

    listen = ListenSettings(port=port, drain_s=0)
    async with serving(listen, LogSettings(), faces=faces, check=well, metrics=CollectorRegistry()) as running:
        yield f"127.0.0.1:{running.port}"
