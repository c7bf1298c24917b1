"""One valid request for every rpc, each setting every field it can: the test of bad input makes its requests out of these.

An rpc that is new stands here before that test passes again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.timestamp_pb2 import Timestamp

from twofold.memory.v1 import (
    branch_pb2,
    checkpoint_pb2,
    context_pb2,
    conversation_pb2,
    document_pb2,
    erasure_pb2,
    event_pb2,
    preference_pb2,
    revision_pb2,
    search_pb2,
    summary_pb2,
    sync_pb2,
    tool_run_pb2,
    transfer_pb2,
    watch_pb2,
)
from twofold.memory.v1 import message_pb2 as said
from twofold.memory.v1 import turn_pb2 as memory_turn_pb2
from twofold.registry.v1 import (
    agent_pb2,
    audit_pb2,
    billing_pb2,
    change_pb2,
    permission_pb2,
    pod_pb2,
    session_pb2,
    terms_pb2,
    usage_pb2,
    user_pb2,
    workspace_pb2,
)
from twofold.router.v1 import event_pb2 as event_pb2_of_router
from twofold.router.v1 import limit_pb2, routing_pb2, turn_pb2
from twofold.router.v1 import session_pb2 as session_pb2_of_router


@dataclass(frozen=True)
class World:
    """What there is before a request is made: these ids, in one workspace, granted to each other."""

    workspace_id: str
    user_id: str = "ada"
    agent_id: str = "helper"
    thread_id: str = "thread-1"
    turn_id: str = "turn-1"
    # Where a turn of the same id is answered.
    answered_thread_id: str = "thread-answered"
    # Where a turn is open: the first one, so its fence is 1.
    open_thread_id: str = "thread-open"
    open_turn_id: str = "turn-open"
    erasure_id: str = "erasure-1"
    # Deleted, and not purged yet; so is a workspace.
    deleted_user_id: str = "user-deleted"
    deleted_agent_id: str = "agent-deleted"
    summary_id: str = "summary-1"
    checkpoint_id: str = "checkpoint-1"
    # One that waits, one that runs its first attempt, and one that has failed and may be retried.
    tool_run_id: str = "run-1"
    running_tool_run_id: str = "run-2"
    failed_tool_run_id: str = "run-3"
    # A turn of the conversation that could not be stored.
    dead_turn_id: str = "turn-dead"
    dead_payload_hash: str = "ab" * 32
    # One that has an invoice.
    closed_month: str = "2020-02"
    pod_id: str = "gate-of-the-house"
    # Sessions that the pod holds; the second one may be closed.
    session_id: str = ""
    closing_session_id: str = ""

    @property
    def deleted_workspace_id(self) -> str:
        """A workspace that is deleted, and not purged yet."""
        return f"{self.workspace_id}-deleted"

    @property
    def request_id(self) -> str:
        """A request id that no other test uses."""
        return f"{self.workspace_id}/r"


def _time(offset: timedelta) -> Timestamp:
    time = Timestamp()
    time.FromDatetime(datetime.now(UTC) + offset)
    return time


def _workspace(workspace_id: str) -> workspace_pb2.Workspace:
    return workspace_pb2.Workspace(
        workspace_id=workspace_id,
        display_name="Acme & Co",
        namespace="acme",
        plan="gold-2",
        state=workspace_pb2.WorkspaceState.WORKSPACE_STATE_ACTIVE,
        settings=workspace_pb2.WorkspaceSettings(
            allowed_url_suffixes=["agents.example.com"],
            limits=[_limit(workspace_pb2.LimitKind.LIMIT_KIND_WORKSPACE_DAY_TOKENS, 10**9)],
            retention=workspace_pb2.Retention(conversation_days=365, session_days=30),
        ),
    )


def _limit(kind: workspace_pb2.LimitKind.ValueType, amount: int) -> workspace_pb2.Limit:
    return workspace_pb2.Limit(kind=kind, amount=amount, shadow=True)


def _cost() -> limit_pb2.OperationCost:
    return limit_pb2.OperationCost(messages=1, tokens=1200, micros=700)


def _user(world: World, user_id: str, email: str) -> user_pb2.User:
    return user_pb2.User(
        workspace_id=world.workspace_id,
        user_id=user_id,
        email=email,
        identity_id=f"idp|{user_id}",
        display_name="Grace",
        role=user_pb2.Role.ROLE_MEMBER,
        state=user_pb2.UserState.USER_STATE_ACTIVE,
        limits=[_limit(workspace_pb2.LimitKind.LIMIT_KIND_USER_HOUR_MESSAGES, 47)],
    )


def _agent(world: World, agent_id: str) -> agent_pb2.Agent:
    return agent_pb2.Agent(
        workspace_id=world.workspace_id,
        agent_id=agent_id,
        display_name="Helper",
        url="http://helper.acme.svc.cluster.local",
        targets=[
            agent_pb2.AgentTarget(name="blue", url="http://blue.acme.svc.cluster.local", weight=900),
            agent_pb2.AgentTarget(name="green", url="http://green.acme.svc.cluster.local", weight=100),
        ],
        price=agent_pb2.AgentPrice(
            per_message_micros=5_000,
            per_1000_input_tokens_micros=300,
            per_1000_output_tokens_micros=1_500,
            currency="EUR",
        ),
        state=agent_pb2.AgentState.AGENT_STATE_PUBLISHED,
        settings=agent_pb2.AgentSettings(
            instructions="Be brief.\nBe kind.",
            model="small",
            context_delivery=agent_pb2.ContextDelivery.CONTEXT_DELIVERY_MESSAGES,
            context_messages_max=10,
            context_tokens_max=1000,
            first_token_timeout=Duration(seconds=5),
            turn_timeout=Duration(seconds=60),
        ),
    )


def _conversation(world: World, thread_id: str) -> conversation_pb2.Conversation:
    return conversation_pb2.Conversation(
        workspace_id=world.workspace_id,
        thread_id=thread_id,
        user_id=world.user_id,
        title="A talk",
        metadata={"channel": "web"},
    )


def _asked() -> said.Message:
    return said.Message(
        role=said.Role.ROLE_USER, content="What is the time?", name="ada", author="ada", token_count=4, metadata={"a": "b"}
    )


def _checked_pod() -> pod_pb2.CheckPodRequest:
    return pod_pb2.CheckPodRequest(pod_id="pod-1", incarnation=pod_pb2.PodIncarnation(epoch=1, number=1))


def _called() -> said.Message:
    call = said.ToolCall(id="call-1", type="function", name="clock", arguments="{}")
    return said.Message(role=said.Role.ROLE_ASSISTANT, tool_calls=[call])


def _result() -> said.Message:
    return said.Message(role=said.Role.ROLE_TOOL, content="noon", tool_call_id="call-1", name="clock")


def _shown() -> said.Message:
    """A message in parts, one of each kind."""
    file = said.FileRef(
        url="https://files.example.com/1", file_id="f-1", media_type="text/plain", name="1.txt", size_bytes=5
    )
    image = said.ImageRef(
        url="https://files.example.com/2", file_id="f-2", media_type="image/png", name="2.png", detail="low"
    )
    data = said.Data(media_type="application/json", json='{"a": [1, 2.50]}')
    pieces = [said.Part(text="Look:"), said.Part(file=file), said.Part(image=image), said.Part(data=data)]
    return said.Message(role=said.Role.ROLE_USER, parts=pieces)


def _owed_usage() -> memory_turn_pb2.OwedUsage:
    return memory_turn_pb2.OwedUsage(event_id="turn-open/0", user_id="ada", agent_id="helper", event_time=_time(timedelta()))


def _turn_usage() -> conversation_pb2.TurnUsage:
    return conversation_pb2.TurnUsage(input_tokens=10, output_tokens=2)


_REGISTRY: dict[str, Callable[[World], ProtoMessage]] = {
    "WorkspaceService.CreateWorkspace": lambda world: workspace_pb2.CreateWorkspaceRequest(
        workspace=_workspace(f"{world.workspace_id}-new"), request_id=world.request_id
    ),
    "WorkspaceService.GetWorkspace": lambda world: workspace_pb2.GetWorkspaceRequest(workspace_id=world.workspace_id),
    "WorkspaceService.BatchGetWorkspaces": lambda world: workspace_pb2.BatchGetWorkspacesRequest(
        workspace_ids=[world.workspace_id, "nowhere"]
    ),
    "WorkspaceService.ListWorkspaces": lambda _: workspace_pb2.ListWorkspacesRequest(
        page_size=5,
        state=workspace_pb2.WorkspaceState.WORKSPACE_STATE_ACTIVE,
        plan="default",
        display_name_prefix="Ac",
        show_deleted=True,
        order_by="create_time desc",
    ),
    "WorkspaceService.UpdateWorkspace": lambda world: workspace_pb2.UpdateWorkspaceRequest(
        workspace=_workspace(world.workspace_id),
        update_mask=FieldMask(paths=["display_name", "namespace", "plan", "state", "settings"]),
        request_id=world.request_id,
    ),
    "WorkspaceService.DeleteWorkspace": lambda world: workspace_pb2.DeleteWorkspaceRequest(
        workspace_id=world.workspace_id, request_id=world.request_id
    ),
    "WorkspaceService.UndeleteWorkspace": lambda world: workspace_pb2.UndeleteWorkspaceRequest(
        workspace_id=world.deleted_workspace_id, request_id=world.request_id
    ),
    "WorkspaceService.PurgeWorkspace": lambda world: workspace_pb2.PurgeWorkspaceRequest(
        workspace_id=world.deleted_workspace_id, request_id=world.request_id
    ),
    "UserService.CreateUser": lambda world: user_pb2.CreateUserRequest(
        user=_user(world, "grace", "grace@example.com"), request_id=world.request_id
    ),
    "UserService.GetUser": lambda world: user_pb2.GetUserRequest(workspace_id=world.workspace_id, user_id=world.user_id),
    "UserService.BatchGetUsers": lambda world: user_pb2.BatchGetUsersRequest(
        workspace_id=world.workspace_id, user_ids=[world.user_id, "nobody"]
    ),
    "UserService.ListUsers": lambda world: user_pb2.ListUsersRequest(
        workspace_id=world.workspace_id,
        page_size=5,
        role=user_pb2.Role.ROLE_MEMBER,
        state=user_pb2.UserState.USER_STATE_ACTIVE,
        email="ada@example.com",
        identity_id="idp|ada",
        show_deleted=True,
        order_by="id desc",
    ),
    "UserService.UpdateUser": lambda world: user_pb2.UpdateUserRequest(
        user=_user(world, world.user_id, "ada@example.com"),
        update_mask=FieldMask(paths=["email", "identity_id", "display_name", "role", "state", "limits"]),
        request_id=world.request_id,
    ),
    "UserService.DeleteUser": lambda world: user_pb2.DeleteUserRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, request_id=world.request_id
    ),
    "UserService.UndeleteUser": lambda world: user_pb2.UndeleteUserRequest(
        workspace_id=world.workspace_id, user_id=world.deleted_user_id, request_id=world.request_id
    ),
    "UserService.PurgeUser": lambda world: user_pb2.PurgeUserRequest(
        workspace_id=world.workspace_id, user_id=world.deleted_user_id, request_id=world.request_id
    ),
    "AgentService.CreateAgent": lambda world: agent_pb2.CreateAgentRequest(
        agent=_agent(world, "new"), request_id=world.request_id
    ),
    "AgentService.GetAgent": lambda world: agent_pb2.GetAgentRequest(
        workspace_id=world.workspace_id, agent_id=world.agent_id
    ),
    "AgentService.BatchGetAgents": lambda world: agent_pb2.BatchGetAgentsRequest(
        workspace_id=world.workspace_id, agent_ids=[world.agent_id, "nothing"]
    ),
    "AgentService.ListAgents": lambda world: agent_pb2.ListAgentsRequest(
        workspace_id=world.workspace_id,
        page_size=5,
        state=agent_pb2.AgentState.AGENT_STATE_PUBLISHED,
        display_name_prefix="Hel",
        show_deleted=True,
        order_by="create_time",
    ),
    "AgentService.UpdateAgent": lambda world: agent_pb2.UpdateAgentRequest(
        agent=_agent(world, world.agent_id),
        update_mask=FieldMask(paths=["display_name", "url", "targets", "price", "state", "settings"]),
        request_id=world.request_id,
    ),
    "AgentService.DeleteAgent": lambda world: agent_pb2.DeleteAgentRequest(
        workspace_id=world.workspace_id, agent_id=world.agent_id, request_id=world.request_id
    ),
    "AgentService.UndeleteAgent": lambda world: agent_pb2.UndeleteAgentRequest(
        workspace_id=world.workspace_id, agent_id=world.deleted_agent_id, request_id=world.request_id
    ),
    "AgentService.PurgeAgent": lambda world: agent_pb2.PurgeAgentRequest(
        workspace_id=world.workspace_id, agent_id=world.deleted_agent_id, request_id=world.request_id
    ),
    "AgentService.ReportAgentState": lambda world: agent_pb2.ReportAgentStateRequest(
        workspace_id=world.workspace_id,
        agent_id=world.agent_id,
        observation=agent_pb2.AgentObservation(
            state=agent_pb2.ObservedState.OBSERVED_STATE_COLD,
            generation=1,
            observe_time=_time(timedelta()),
            message="scaled to zero",
        ),
    ),
    "PermissionService.Grant": lambda world: permission_pb2.GrantRequest(
        grant=permission_pb2.AgentGrant(
            workspace_id=world.workspace_id,
            user_id=world.user_id,
            agent_id=world.agent_id,
            expire_time=_time(timedelta(days=1)),
        ),
        request_id=world.request_id,
    ),
    "PermissionService.BatchGrant": lambda world: permission_pb2.BatchGrantRequest(
        workspace_id=world.workspace_id,
        grants=[
            permission_pb2.BatchGrantItem(
                user_id=world.user_id,
                agent_id=world.agent_id,
                expire_time=_time(timedelta(days=1)),
                grant_condition=permission_pb2.GRANT_CONDITION_MUST_EXIST,
                agent_condition=permission_pb2.AGENT_CONDITION_PUBLISHED,
            )
        ],
        request_id=world.request_id,
    ),
    "PermissionService.Revoke": lambda world: permission_pb2.RevokeRequest(
        workspace_id=world.workspace_id,
        user_id=world.user_id,
        agent_id=world.agent_id,
        request_id=world.request_id,
        wait=permission_pb2.REVOKE_WAIT_NONE,
    ),
    "PermissionService.BatchRevoke": lambda world: permission_pb2.BatchRevokeRequest(
        workspace_id=world.workspace_id,
        revokes=[
            permission_pb2.BatchRevokeItem(
                user_id=world.user_id,
                agent_id=world.agent_id,
                grant_condition=permission_pb2.GRANT_CONDITION_MUST_EXIST,
            )
        ],
        request_id=world.request_id,
        wait=permission_pb2.REVOKE_WAIT_NONE,
    ),
    "PermissionService.Check": lambda world: permission_pb2.CheckRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, agent_id=world.agent_id
    ),
    "PermissionService.BatchCheck": lambda world: permission_pb2.BatchCheckRequest(
        workspace_id=world.workspace_id,
        pairs=[permission_pb2.PermissionPair(user_id=world.user_id, agent_id=world.agent_id)],
    ),
    "PermissionService.ExplainPermission": lambda world: permission_pb2.ExplainPermissionRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, agent_id=world.agent_id
    ),
    "PermissionService.ListGrants": lambda world: permission_pb2.ListGrantsRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, agent_id=world.agent_id, page_size=5
    ),
    "PermissionService.ListUsableAgents": lambda world: permission_pb2.ListUsableAgentsRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, page_size=5
    ),
    "PermissionService.ListAgentUsers": lambda world: permission_pb2.ListAgentUsersRequest(
        workspace_id=world.workspace_id, agent_id=world.agent_id, page_size=5
    ),
    "UsageService.RecordUsage": lambda world: usage_pb2.RecordUsageRequest(
        workspace_id=world.workspace_id,
        events=[
            usage_pb2.UsageEvent(
                event_id="turn-1/1",
                user_id=world.user_id,
                agent_id=world.agent_id,
                thread_id=world.thread_id,
                event_time=_time(timedelta()),
                messages=2,
                input_tokens=10,
                output_tokens=2,
            )
        ],
    ),
    "UsageService.StreamUsage": lambda world: usage_pb2.StreamUsageRequest(
        workspace_id=world.workspace_id,
        events=[
            usage_pb2.UsageEvent(
                event_id="turn-2/1",
                user_id=world.user_id,
                agent_id=world.agent_id,
                thread_id=world.thread_id,
                event_time=_time(timedelta()),
                messages=2,
                kind="tool",
            )
        ],
    ),
    "UsageService.GetUsage": lambda world: usage_pb2.GetUsageRequest(
        workspace_id=world.workspace_id,
        start_time=_time(-timedelta(days=1)),
        end_time=_time(timedelta()),
        user_id=world.user_id,
        agent_id=world.agent_id,
        kind="turn",
    ),
    "UsageService.QueryUsage": lambda world: usage_pb2.QueryUsageRequest(
        workspace_id=world.workspace_id,
        start_time=_time(-timedelta(days=1)),
        end_time=_time(timedelta()),
        group_by=usage_pb2.USAGE_GROUP_DAY,
        user_id=world.user_id,
        agent_id=world.agent_id,
        kind="turn",
        page_size=10,
    ),
    "UsageService.ReadWindow": lambda world: usage_pb2.ReadWindowRequest(
        workspace_id=world.workspace_id,
        start_time=_time(-timedelta(hours=1)),
        cell=Duration(seconds=300),
        operations_for=Duration(seconds=600),
        group_by=usage_pb2.WINDOW_GROUP_USER,
    ),
    "TermsService.GetTerms": lambda world: terms_pb2.GetTermsRequest(workspace_id=world.workspace_id, user_id=world.user_id),
    "BillingService.GetBill": lambda world: billing_pb2.GetBillRequest(
        workspace_id=world.workspace_id, month=world.closed_month, page_size=10
    ),
    "BillingService.CloseMonth": lambda world: billing_pb2.CloseMonthRequest(
        workspace_id=world.workspace_id, month="2020-03", request_id=world.request_id
    ),
    "BillingService.GetInvoice": lambda world: billing_pb2.GetInvoiceRequest(
        workspace_id=world.workspace_id, month=world.closed_month, page_size=10
    ),
    "BillingService.ListInvoices": lambda world: billing_pb2.ListInvoicesRequest(
        workspace_id=world.workspace_id, page_size=10
    ),
    "BillingService.CreateAdjustment": lambda world: billing_pb2.CreateAdjustmentRequest(
        adjustment=billing_pb2.Adjustment(
            workspace_id=world.workspace_id,
            about_month=world.closed_month,
            amount=usage_pb2.Money(currency="EUR", amount_micros=-5_000_000),
            reason="as agreed",
        ),
        request_id=world.request_id,
    ),
    "BillingService.GetCaps": lambda world: billing_pb2.GetCapsRequest(workspace_id=world.workspace_id),
    "BillingService.SetCaps": lambda world: billing_pb2.SetCapsRequest(
        caps=billing_pb2.UsageCaps(
            workspace_id=world.workspace_id,
            messages=billing_pb2.Cap(soft=80, hard=100),
            tokens=billing_pb2.Cap(soft=80, hard=100),
            cost_micros=billing_pb2.Cap(soft=80, hard=100),
            currency="EUR",
        ),
        request_id=world.request_id,
    ),
    "ChangeService.Watch": lambda world: change_pb2.WatchRequest(
        open=change_pb2.WatchOpen(
            router=change_pb2.WatchRouter(router_id=world.workspace_id, incarnation="1"),
            place=change_pb2.WatchPlace(epoch=1, revision=1, tag=1),
            state=True,
            until_caught_up=True,
        )
    ),
    "ChangeService.ListRouters": lambda _: change_pb2.ListRoutersRequest(),
    "PodService.RegisterPod": lambda world: pod_pb2.RegisterPodRequest(
        pod_id="pod-1", address="10.0.0.7:8080", request_id=f"{world.request_id}/pod"
    ),
    "PodService.CheckPod": lambda _: _checked_pod(),
    "PodService.BatchCheckPods": lambda _: pod_pb2.BatchCheckPodsRequest(pods=[_checked_pod()]),
    "PodService.MarkPodDead": lambda _: pod_pb2.MarkPodDeadRequest(
        pod_id="pod-2", incarnation=pod_pb2.PodIncarnation(epoch=1, number=1), reason="lease ended"
    ),
    "PodService.ListPods": lambda _: pod_pb2.ListPodsRequest(state=pod_pb2.PodState.POD_STATE_LIVE, page_size=5),
    "SessionHistoryService.RecordSessions": lambda world: session_pb2.RecordSessionsRequest(
        workspace_id=world.workspace_id,
        events=[
            session_pb2.SessionEvent(
                session_id="session-1",
                fence=1,
                kind=session_pb2.SessionEventKind.SESSION_EVENT_KIND_CLOSED,
                user_id=world.user_id,
                agent_id=world.agent_id,
                pod_id="pod-1",
                incarnation=pod_pb2.PodIncarnation(epoch=1, number=1),
                event_time=_time(timedelta()),
                close_reason=session_pb2.SessionCloseReason.SESSION_CLOSE_REASON_IDLE,
            )
        ],
    ),
    "SessionHistoryService.ListSessions": lambda world: session_pb2.ListSessionsRequest(
        workspace_id=world.workspace_id,
        user_id=world.user_id,
        agent_id=world.agent_id,
        pod_id="pod-1",
        start_time=_time(-timedelta(days=1)),
        end_time=_time(timedelta()),
        page_size=5,
    ),
    "AuditService.ListAuditEntries": lambda world: audit_pb2.ListAuditEntriesRequest(
        workspace_id=world.workspace_id,
        resource_kind="user",
        resource_id=world.user_id,
        actor="anonymous",
        action="user.create",
        start_time=_time(timedelta(days=-1)),
        end_time=_time(timedelta(days=1)),
        first_revision=1,
        last_revision=1000,
        page_size=5,
    ),
    "AuditService.VerifyAudit": lambda world: audit_pb2.VerifyAuditRequest(
        workspace_id=world.workspace_id,
        after_seq=1,
        after_hash=b"h" * 32,
        signed_head=audit_pb2.SignedAuditHead(
            workspace_id=world.workspace_id,
            seq=2,
            hash=b"h" * 32,
            revision=1,
            epoch=1,
            time=_time(timedelta()),
            key_id="0123456789abcdef",
            signature=b"s" * 64,
        ),
    ),
    "AuditService.ExportAudit": lambda world: audit_pb2.ExportAuditRequest(workspace_id=world.workspace_id, after_seq=1),
    "AuditService.ExportAuditHead": lambda world: audit_pb2.ExportAuditHeadRequest(workspace_id=world.workspace_id),
    "AuditService.GetAuditKey": lambda world: audit_pb2.GetAuditKeyRequest(),
}

_MEMORY: dict[str, Callable[[World], ProtoMessage]] = {
    "ConversationService.CreateConversation": lambda world: conversation_pb2.CreateConversationRequest(
        conversation=_conversation(world, "thread-new"), request_id=world.request_id
    ),
    "ConversationService.GetConversation": lambda world: conversation_pb2.GetConversationRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, user_id=world.user_id
    ),
    "ConversationService.ListConversations": lambda world: conversation_pb2.ListConversationsRequest(
        workspace_id=world.workspace_id,
        user_id=world.user_id,
        page_size=5,
        updated_from=_time(-timedelta(days=1)),
        updated_before=_time(timedelta(days=1)),
        metadata={"channel": "web"},
    ),
    "ConversationService.UpdateConversation": lambda world: conversation_pb2.UpdateConversationRequest(
        conversation=_conversation(world, world.thread_id),
        update_mask=FieldMask(paths=["title", "metadata"]),
        request_id=world.request_id,
    ),
    "ConversationService.DeleteConversation": lambda world: conversation_pb2.DeleteConversationRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, request_id=world.request_id
    ),
    "ConversationService.UndeleteConversation": lambda world: conversation_pb2.UndeleteConversationRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, request_id=world.request_id
    ),
    "ConversationService.AppendTurn": lambda world: conversation_pb2.AppendTurnRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        request_id=world.request_id,
        messages=[_asked(), _called(), _result(), _shown()],
        usage=_turn_usage(),
    ),
    "ConversationService.GetTurn": lambda world: conversation_pb2.GetTurnRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, turn_id=world.turn_id
    ),
    "ConversationService.GetMessage": lambda world: conversation_pb2.GetMessageRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, seq=1, user_id=world.user_id
    ),
    "ConversationService.ReadWindow": lambda world: conversation_pb2.ReadWindowRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        message_count_max=5,
        token_count_max=100,
        read_level=said.ReadLevel.READ_LEVEL_VERIFIED,
        user_id=world.user_id,
    ),
    "ConversationService.ListMessages": lambda world: conversation_pb2.ListMessagesRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, page_size=5, from_seq=1, user_id=world.user_id
    ),
    "RevisionService.EditMessage": lambda world: revision_pb2.EditMessageRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        seq=1,
        content=revision_pb2.NewContent(text="Hello there"),
        token_count=2,
        expected_revision=0,
        reason="politeness",
        user_id=world.user_id,
        request_id=world.request_id,
    ),
    "RevisionService.RedactMessage": lambda world: revision_pb2.RedactMessageRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        seq=1,
        replacement="(redacted)",
        reason="a name",
        user_id=world.user_id,
        request_id=world.request_id,
    ),
    "RevisionService.DeleteMessage": lambda world: revision_pb2.DeleteMessageRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        seq=1,
        expected_revision=0,
        reason="a slip",
        user_id=world.user_id,
        request_id=world.request_id,
    ),
    "RevisionService.PopTurn": lambda world: revision_pb2.PopTurnRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        expected_turn_id=world.turn_id,
        reason="a slip",
        user_id=world.user_id,
        request_id=world.request_id,
    ),
    "RevisionService.ListRevisions": lambda world: revision_pb2.ListRevisionsRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, seq=1, user_id=world.user_id, page_size=5
    ),
    "BranchService.ForkConversation": lambda world: branch_pb2.ForkConversationRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        at_seq=1,
        branch_thread_id="branch",
        user_id=world.user_id,
        title="Another way",
        metadata={"channel": "web"},
        request_id=world.request_id,
    ),
    "BranchService.ListBranches": lambda world: branch_pb2.ListBranchesRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, user_id=world.user_id, page_size=5
    ),
    "TurnService.BeginTurn": lambda world: memory_turn_pb2.BeginTurnRequest(
        workspace_id=world.workspace_id,
        thread_id="thread-begun",
        user_id=world.user_id,
        request_id=world.request_id,
        messages=[_asked()],
        lease_duration=Duration(seconds=900),
        holder="helper-7",
        policy=memory_turn_pb2.TurnPolicy.TURN_POLICY_QUEUE,
        queue_wait=Duration(seconds=5),
    ),
    "TurnService.HeartbeatTurn": lambda world: memory_turn_pb2.HeartbeatTurnRequest(
        workspace_id=world.workspace_id,
        thread_id=world.open_thread_id,
        turn_id=world.open_turn_id,
        fence=1,
        partial_messages=[_called(), _result()],
        lease_duration=Duration(seconds=900),
    ),
    "TurnService.CommitTurn": lambda world: memory_turn_pb2.CommitTurnRequest(
        workspace_id=world.workspace_id,
        thread_id=world.open_thread_id,
        turn_id=world.open_turn_id,
        fence=1,
        response_messages=[_called(), _result()],
        usage=_turn_usage(),
        interrupted=True,
        owed_usage=_owed_usage(),
    ),
    "TurnService.AbortTurn": lambda world: memory_turn_pb2.AbortTurnRequest(
        workspace_id=world.workspace_id,
        thread_id=world.open_thread_id,
        turn_id=world.open_turn_id,
        fence=1,
        partial_messages=[_called()],
        reason="The model does not answer.",
        usage=_turn_usage(),
        owed_usage=_owed_usage(),
    ),
    "TurnService.GetOpenTurn": lambda world: memory_turn_pb2.GetOpenTurnRequest(
        workspace_id=world.workspace_id, thread_id=world.open_thread_id, user_id=world.user_id
    ),
    "TurnService.ListUnrecordedUsage": lambda world: memory_turn_pb2.ListUnrecordedUsageRequest(
        min_age=Duration(seconds=5), page_size=5
    ),
    "TurnService.AcknowledgeUsage": lambda world: memory_turn_pb2.AcknowledgeUsageRequest(
        turns=[
            memory_turn_pb2.TurnName(
                workspace_id=world.workspace_id, thread_id=world.open_thread_id, turn_id=world.open_turn_id
            )
        ]
    ),
    "WatchService.WatchConversation": lambda world: watch_pb2.WatchConversationRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        after_seq=1,
        until_caught_up=True,
    ),
    "SearchService.SearchMessages": lambda world: search_pb2.SearchMessagesRequest(
        workspace_id=world.workspace_id,
        user_id=world.user_id,
        thread_id=world.thread_id,
        query='hello -goodbye or "good day"',
        start_time=_time(-timedelta(days=1)),
        end_time=_time(timedelta(days=1)),
        around=2,
        order=search_pb2.SearchOrder.SEARCH_ORDER_RELEVANCE,
        page_size=5,
    ),
    "DocumentService.LinkDocument": lambda world: document_pb2.LinkDocumentRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        document=document_pb2.Document(
            document_id="paper-1",
            title="A paper",
            url="s3://papers/1",
            media_type="text/markdown",
            metadata={"language": "en"},
        ),
        request_id=world.request_id,
    ),
    "DocumentService.UnlinkDocument": lambda world: document_pb2.UnlinkDocumentRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        document_id="paper-1",
        request_id=world.request_id,
    ),
    "DocumentService.ListDocuments": lambda world: document_pb2.ListDocumentsRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, user_id=world.user_id, page_size=5
    ),
    "ContextService.Invoking": lambda world: context_pb2.InvokingRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        message_count_max=5,
        token_count_max=100,
        read_level=said.ReadLevel.READ_LEVEL_VERIFIED,
        without_summary=True,
        without_documents=True,
        with_open_calls=True,
    ),
    "ContextService.Invoked": lambda world: context_pb2.InvokedRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        request_id=world.request_id,
        request_messages=[_asked()],
        response_messages=[_called(), _result()],
        usage=_turn_usage(),
    ),
    "PreferenceService.GetPreferences": lambda world: preference_pb2.GetPreferencesRequest(
        workspace_id=world.workspace_id, user_id=world.user_id
    ),
    "PreferenceService.UpdatePreferences": lambda world: preference_pb2.UpdatePreferencesRequest(
        workspace_id=world.workspace_id,
        user_id=world.user_id,
        set={"tone": "short"},
        remove=["preferred_language"],
        request_id=world.request_id,
        expire_times={"tone": _time(timedelta(days=1))},
        expected_versions={"preferred_language": 1, "tone": 0},
    ),
    "SummaryService.PutSummary": lambda world: summary_pb2.PutSummaryRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        summary=summary_pb2.Summary(
            summary_id="summary-2",
            first_seq=1,
            last_seq=1,
            text="They said hello.",
            token_count=4,
            model="small",
            author="ada",
            metadata={"a": "b"},
        ),
        request_id=world.request_id,
    ),
    "SummaryService.GetSummary": lambda world: summary_pb2.GetSummaryRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, summary_id=world.summary_id, user_id=world.user_id
    ),
    "SummaryService.ListSummaries": lambda world: summary_pb2.ListSummariesRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, user_id=world.user_id, page_size=5
    ),
    "SummaryService.DeleteSummary": lambda world: summary_pb2.DeleteSummaryRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        summary_id=world.summary_id,
        user_id=world.user_id,
        request_id=world.request_id,
    ),
    "ToolRunService.CreateToolRun": lambda world: tool_run_pb2.CreateToolRunRequest(
        tool_run=tool_run_pb2.ToolRun(
            workspace_id=world.workspace_id,
            tool_run_id="run-new",
            thread_id=world.thread_id,
            turn_id=world.turn_id,
            tool_call_id="call-1",
            name="clock",
            arguments="{}",
            attempts_max=3,
            backoff=Duration(seconds=1),
            metadata={"a": "b"},
        ),
        user_id=world.user_id,
        request_id=world.request_id,
    ),
    "ToolRunService.ClaimToolRun": lambda world: tool_run_pb2.ClaimToolRunRequest(
        workspace_id=world.workspace_id,
        tool_run_id=world.tool_run_id,
        version=1,
        holder="worker-1",
        lease_duration=Duration(seconds=30),
        request_id=world.request_id,
    ),
    "ToolRunService.HeartbeatToolRun": lambda world: tool_run_pb2.HeartbeatToolRunRequest(
        workspace_id=world.workspace_id,
        tool_run_id=world.running_tool_run_id,
        version=2,
        attempt=1,
        lease_duration=Duration(seconds=30),
        request_id=world.request_id,
    ),
    "ToolRunService.CompleteToolRun": lambda world: tool_run_pb2.CompleteToolRunRequest(
        workspace_id=world.workspace_id,
        tool_run_id=world.running_tool_run_id,
        version=2,
        attempt=1,
        result="noon",
        request_id=world.request_id,
    ),
    "ToolRunService.FailToolRun": lambda world: tool_run_pb2.FailToolRunRequest(
        workspace_id=world.workspace_id,
        tool_run_id=world.running_tool_run_id,
        version=2,
        attempt=1,
        error="no clock",
        retryable=True,
        request_id=world.request_id,
    ),
    "ToolRunService.CancelToolRun": lambda world: tool_run_pb2.CancelToolRunRequest(
        workspace_id=world.workspace_id, tool_run_id=world.tool_run_id, version=1, request_id=world.request_id
    ),
    "ToolRunService.RetryToolRun": lambda world: tool_run_pb2.RetryToolRunRequest(
        workspace_id=world.workspace_id,
        tool_run_id=world.failed_tool_run_id,
        version=3,
        delay=Duration(seconds=5),
        request_id=world.request_id,
    ),
    "ToolRunService.GetToolRun": lambda world: tool_run_pb2.GetToolRunRequest(
        workspace_id=world.workspace_id, tool_run_id=world.tool_run_id, user_id=world.user_id
    ),
    "ToolRunService.ListToolRuns": lambda world: tool_run_pb2.ListToolRunsRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        state=tool_run_pb2.ToolRunState.TOOL_RUN_STATE_PENDING,
        name="clock",
        page_size=5,
    ),
    "CheckpointService.PutCheckpoint": lambda world: checkpoint_pb2.PutCheckpointRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        checkpoint=checkpoint_pb2.Checkpoint(
            checkpoint_id="checkpoint-2",
            line="plan",
            parent_id=world.checkpoint_id,
            data=b"state",
            content_type="application/octet-stream",
            metadata={"a": "b"},
            pinned=True,
        ),
        expected_head_id=world.checkpoint_id,
        request_id=world.request_id,
    ),
    "CheckpointService.GetCheckpoint": lambda world: checkpoint_pb2.GetCheckpointRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, user_id=world.user_id, line="plan"
    ),
    "CheckpointService.ListCheckpoints": lambda world: checkpoint_pb2.ListCheckpointsRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        line="plan",
        with_data=True,
        page_size=5,
    ),
    "CheckpointService.ForkCheckpoint": lambda world: checkpoint_pb2.ForkCheckpointRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        checkpoint_id=world.checkpoint_id,
        new_line="another plan",
        new_checkpoint_id="checkpoint-3",
        request_id=world.request_id,
    ),
    "CheckpointService.PinCheckpoint": lambda world: checkpoint_pb2.PinCheckpointRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        checkpoint_id=world.checkpoint_id,
        pinned=True,
        request_id=world.request_id,
    ),
    "CheckpointService.DeleteCheckpoints": lambda world: checkpoint_pb2.DeleteCheckpointsRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        line="plan",
        keep_newest=1,
        request_id=world.request_id,
    ),
    "EventLogService.AppendEvents": lambda world: event_pb2.AppendEventsRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        events=[event_pb2.Event(kind="plan.changed", payload="{}")],
        request_id=world.request_id,
    ),
    "EventLogService.ListEvents": lambda world: event_pb2.ListEventsRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        user_id=world.user_id,
        after_offset=1,
        kind="plan.changed",
        page_size=5,
    ),
}

_MEMORY |= {
    "TransferService.ImportConversations": lambda world: transfer_pb2.ImportConversationsRequest(
        header=transfer_pb2.ImportHeader(
            workspace_id=world.workspace_id,
            import_id="transcripts-1",
            user_id=world.user_id,
            on_error=transfer_pb2.ON_LINE_ERROR_CONTINUE,
            first_line=1,
        )
    ),
    "TransferService.ExportConversations": lambda world: transfer_pb2.ExportConversationsRequest(
        workspace_id=world.workspace_id,
        user_id=world.user_id,
        thread_ids=[world.thread_id],
        updated_from=_time(-timedelta(days=1)),
        updated_before=_time(timedelta(days=1)),
        include_deleted=True,
        include_service_fields=True,
    ),
    "ErasureService.EraseConversation": lambda world: erasure_pb2.EraseConversationRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, request_id=world.request_id, erasure_id="erasure-2"
    ),
    "ErasureService.EraseUser": lambda world: erasure_pb2.EraseUserRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, request_id=world.request_id, erasure_id="erasure-2"
    ),
    "ErasureService.EraseWorkspace": lambda world: erasure_pb2.EraseWorkspaceRequest(
        workspace_id=world.workspace_id, request_id=world.request_id, erasure_id="erasure-2"
    ),
    "ErasureService.GetErasure": lambda world: erasure_pb2.GetErasureRequest(
        workspace_id=world.workspace_id, erasure_id=world.erasure_id
    ),
    "ErasureService.ListErasures": lambda world: erasure_pb2.ListErasuresRequest(
        workspace_id=world.workspace_id, page_size=5
    ),
    "ErasureService.SetRetention": lambda world: erasure_pb2.SetRetentionRequest(
        workspace_id=world.workspace_id, days=30, request_id=world.request_id
    ),
    "ErasureService.GetRetention": lambda world: erasure_pb2.GetRetentionRequest(workspace_id=world.workspace_id),
    "SyncService.GetSyncStatus": lambda _: sync_pb2.GetSyncStatusRequest(),
    "SyncService.ListDeadLetters": lambda world: sync_pb2.ListDeadLettersRequest(
        workspace_id=world.workspace_id, with_resolved=True, page_size=5
    ),
    "SyncService.GetDeadLetter": lambda world: sync_pb2.GetDeadLetterRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        turn_id=world.dead_turn_id,
        payload_hash=world.dead_payload_hash,
    ),
    "SyncService.ReplayDeadLetter": lambda world: sync_pb2.ReplayDeadLetterRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        turn_id=world.dead_turn_id,
        payload_hash=world.dead_payload_hash,
        new_turn_id="turn-2",
        reason="it is wanted",
        request_id=world.request_id,
    ),
    "SyncService.DiscardDeadLetter": lambda world: sync_pb2.DiscardDeadLetterRequest(
        workspace_id=world.workspace_id,
        thread_id=world.thread_id,
        turn_id=world.dead_turn_id,
        payload_hash=world.dead_payload_hash,
        reason="a test of ours",
        request_id=world.request_id,
    ),
    "SyncService.AuditConversations": lambda world: sync_pb2.AuditConversationsRequest(
        workspace_id=world.workspace_id, thread_id=world.thread_id, repair=True, only_findings=True
    ),
}

_ROUTER: dict[str, Callable[[World], ProtoMessage]] = {
    "RoutingService.Resolve": lambda world: routing_pb2.ResolveRequest(
        workspace_id=world.workspace_id,
        user_id=world.user_id,
        agent_id=world.agent_id,
        operation_id="op-resolved",
        cost=_cost(),
        mode=routing_pb2.RESOLVE_MODE_COUNT,
    ),
    "LimitService.GetLimits": lambda world: limit_pb2.GetLimitsRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, agent_id=world.agent_id
    ),
    "LimitService.SettleOperation": lambda world: limit_pb2.SettleOperationRequest(
        workspace_id=world.workspace_id,
        user_id=world.user_id,
        agent_id=world.agent_id,
        operation_id="op-settled",
        cost=_cost(),
        operation_time=_time(timedelta()),
    ),
    "LimitService.ReleaseOperation": lambda world: limit_pb2.ReleaseOperationRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, agent_id=world.agent_id, operation_id="op-released"
    ),
    "RoutingService.Check": lambda world: routing_pb2.CheckRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, agent_id=world.agent_id
    ),
    "RoutingService.BatchResolve": lambda world: routing_pb2.BatchResolveRequest(
        workspace_id=world.workspace_id,
        pairs=[
            routing_pb2.UserAgent(user_id=world.user_id, agent_id=world.agent_id, operation_id="op-of-batch", cost=_cost())
        ],
        mode=routing_pb2.RESOLVE_MODE_COUNT,
    ),
    "RoutingService.Explain": lambda world: routing_pb2.ExplainRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, agent_id=world.agent_id
    ),
    "RoutingService.ReportOutcome": lambda world: routing_pb2.ReportOutcomeRequest(
        workspace_id=world.workspace_id,
        outcomes=[
            routing_pb2.Outcome(
                agent_id=world.agent_id,
                target_name="blue",
                generation=1,
                outcome=routing_pb2.TARGET_OUTCOME_FIRST_BYTE,
                latency=Duration(nanos=250_000_000),
            )
        ],
    ),
    "SessionService.PodLink": lambda world: session_pb2_of_router.PodLinkRequest(
        # The registry knows no such life, so it is fenced.
        hello=session_pb2_of_router.PodHello(
            pod_id="gate-of-nobody",
            incarnation=pod_pb2.PodIncarnation(epoch=1, number=1),
            address="10.0.0.7:8080",
            request_id=world.request_id,
        )
    ),
    "SessionService.GetSession": lambda world: session_pb2_of_router.GetSessionRequest(
        workspace_id=world.workspace_id, session_id=world.session_id
    ),
    "SessionService.ListSessions": lambda world: session_pb2_of_router.ListSessionsRequest(
        workspace_id=world.workspace_id,
        user_id=world.user_id,
        agent_id=world.agent_id,
        pod_id=world.pod_id,
        page_size=10,
    ),
    "SessionService.CountSessions": lambda world: session_pb2_of_router.CountSessionsRequest(
        workspace_id=world.workspace_id, user_id=world.user_id, agent_id=world.agent_id, pod_id=world.pod_id
    ),
    "SessionService.CloseSession": lambda world: session_pb2_of_router.CloseSessionRequest(
        workspace_id=world.workspace_id,
        session_id=world.closing_session_id,
        reason=session_pb2.SESSION_CLOSE_REASON_IDLE,
    ),
    "SessionService.SendToSession": lambda world: session_pb2_of_router.SendToSessionRequest(
        workspace_id=world.workspace_id, session_id=world.session_id, message_id="m-1", payload=b"Good morning"
    ),
    "SessionService.DrainPod": lambda world: session_pb2_of_router.DrainPodRequest(
        pod_id=world.pod_id, reason="a new version"
    ),
    "SessionService.ListLinkedPods": lambda world: session_pb2_of_router.ListLinkedPodsRequest(page_size=10),
    "EventService.Publish": lambda world: event_pb2_of_router.PublishRequest(
        workspace_id=world.workspace_id,
        agent_id=world.agent_id,
        events=[
            event_pb2_of_router.AgentEvent(type="plan.changed", content_type="application/json", payload=b'{"step": 2}')
        ],
        request_id=world.request_id,
    ),
    "EventService.ListEvents": lambda world: event_pb2_of_router.ListEventsRequest(
        workspace_id=world.workspace_id, agent_id=world.agent_id, page_size=5
    ),
    "EventService.Subscribe": lambda world: event_pb2_of_router.SubscribeRequest(
        open=event_pb2_of_router.SubscribeOpen(
            workspace_id=world.workspace_id,
            agents=[
                event_pb2_of_router.SubscribeAgent(agent_id=world.agent_id, oldest=True),
                event_pb2_of_router.SubscribeAgent(
                    agent_id="another", after=event_pb2_of_router.EventPlace(log_epoch="lost", offset=7)
                ),
            ],
            credits=100,
            until_caught_up=True,
        )
    ),
    "TurnService.Run": lambda world: turn_pb2.RunRequest(
        workspace_id=world.workspace_id,
        agent_id=world.agent_id,
        user_id=world.user_id,
        thread_id=world.thread_id,
        operation_id="op-1",
        message="What is the time?",
        instructions="Be brief.",
        tools=[turn_pb2.Tool(name="clock", description="Says what time it is.", parameters_json='{"type": "object"}')],
        keep_running=True,
        turn_policy=memory_turn_pb2.TurnPolicy.TURN_POLICY_QUEUE,
        queue_wait=Duration(seconds=5),
    ),
    "TurnService.Attach": lambda world: turn_pb2.AttachRequest(
        workspace_id=world.workspace_id,
        user_id=world.user_id,
        operation_id=world.turn_id,
        thread_id=world.answered_thread_id,
        text_offset=0,
    ),
    "TurnService.CancelTurn": lambda world: turn_pb2.CancelTurnRequest(
        workspace_id=world.workspace_id,
        user_id=world.user_id,
        operation_id=world.turn_id,
        thread_id=world.answered_thread_id,
    ),
}

EXAMPLES: dict[str, Callable[[World], ProtoMessage]] = {
    f"twofold.{room}.v1.{name}": example
    for room, table in (("registry", _REGISTRY), ("memory", _MEMORY), ("router", _ROUTER))
    for name, example in table.items()
}
