"""The client: one channel a service, and the stubs on it."""

from types import TracebackType
from typing import Self

import grpc

from twofold import channels
from twofold.memory.v1.branch_pb2_grpc import BranchServiceStub
from twofold.memory.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from twofold.memory.v1.context_pb2_grpc import ContextServiceStub
from twofold.memory.v1.conversation_pb2_grpc import ConversationServiceStub
from twofold.memory.v1.document_pb2_grpc import DocumentServiceStub
from twofold.memory.v1.erasure_pb2_grpc import ErasureServiceStub
from twofold.memory.v1.event_pb2_grpc import EventLogServiceStub
from twofold.memory.v1.preference_pb2_grpc import PreferenceServiceStub
from twofold.memory.v1.revision_pb2_grpc import RevisionServiceStub
from twofold.memory.v1.search_pb2_grpc import SearchServiceStub
from twofold.memory.v1.summary_pb2_grpc import SummaryServiceStub
from twofold.memory.v1.sync_pb2_grpc import SyncServiceStub
from twofold.memory.v1.tool_run_pb2_grpc import ToolRunServiceStub
from twofold.memory.v1.transfer_pb2_grpc import TransferServiceStub
from twofold.memory.v1.turn_pb2_grpc import TurnServiceStub as OpenTurnServiceStub
from twofold.memory.v1.watch_pb2_grpc import WatchServiceStub
from twofold.registry.v1.agent_pb2_grpc import AgentServiceStub
from twofold.registry.v1.audit_pb2_grpc import AuditServiceStub
from twofold.registry.v1.billing_pb2_grpc import BillingServiceStub
from twofold.registry.v1.change_pb2_grpc import ChangeServiceStub
from twofold.registry.v1.permission_pb2_grpc import PermissionServiceStub
from twofold.registry.v1.pod_pb2_grpc import PodServiceStub
from twofold.registry.v1.session_pb2_grpc import SessionHistoryServiceStub
from twofold.registry.v1.terms_pb2_grpc import TermsServiceStub
from twofold.registry.v1.usage_pb2_grpc import UsageServiceStub
from twofold.registry.v1.user_pb2_grpc import UserServiceStub
from twofold.registry.v1.workspace_pb2_grpc import WorkspaceServiceStub
from twofold.router.v1.event_pb2_grpc import EventServiceStub
from twofold.router.v1.limit_pb2_grpc import LimitServiceStub
from twofold.router.v1.routing_pb2_grpc import RoutingServiceStub
from twofold.router.v1.session_pb2_grpc import SessionServiceStub
from twofold.router.v1.turn_pb2_grpc import TurnServiceStub

REGISTRY = "127.0.0.1:50051"
MEMORY = "127.0.0.1:50052"
ROUTER = "127.0.0.1:50053"

_REGISTRY_CONFIG = channels.service_config(
    [
        f"twofold.registry.v1.{name}Service"
        for name in (
            "Workspace",
            "User",
            "Agent",
            "Permission",
            "Usage",
            "Terms",
            "Billing",
            "Audit",
            "Change",
            "Pod",
            "SessionHistory",
        )
    ]
)
_MEMORY_CONFIG = channels.service_config(
    [
        f"twofold.memory.v1.{name}Service"
        for name in (
            "Conversation",
            "Revision",
            "Branch",
            "Context",
            "Preference",
            "Summary",
            "ToolRun",
            "Checkpoint",
            "EventLog",
            "Turn",
            "Watch",
            "Search",
            "Document",
            "Transfer",
            "Erasure",
            "Sync",
        )
    ]
)
_ROUTER_CONFIG = channels.service_config(
    [
        "twofold.router.v1.RoutingService",
        "twofold.router.v1.LimitService",
        "twofold.router.v1.EventService",
        "twofold.router.v1.SessionService",
        "twofold.router.v1.TurnService",
    ],
    # A turn calls an agent, which may do things in the world: whether it runs again is for its caller to decide. What is
    # sent to sessions is sent at most once.
    once=[
        ("twofold.router.v1.TurnService", "Run"),
        ("twofold.router.v1.SessionService", "SendToSession"),
        ("twofold.router.v1.SessionService", "PodLink"),
    ],
)


class Twofold:
    """The three services, to be used as `async with Twofold(...) as twofold:`.

    A channel connects when it is first used, so a service that is never called need not be there. `actor` says who
    calls; a call's own `twofold-actor` metadata goes before it. Writes without a request_id are given one, so that the
    retries of the channel (of UNAVAILABLE, 4 attempts at most, never of a turn) cannot write twice.
    """

    def __init__(
        self,
        *,
        registry: str = REGISTRY,
        memory: str = MEMORY,
        router: str = ROUTER,
        actor: str = "",
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._targets = (
            (registry, _REGISTRY_CONFIG),
            (memory, _MEMORY_CONFIG),
            (router, _ROUTER_CONFIG),
        )
        self._actor = actor
        self._credentials = credentials
        self._channels: list[grpc.aio.Channel] = []

    workspaces: WorkspaceServiceStub
    users: UserServiceStub
    agents: AgentServiceStub
    permissions: PermissionServiceStub
    usage: UsageServiceStub
    terms: TermsServiceStub
    billing: BillingServiceStub
    audit: AuditServiceStub
    changes: ChangeServiceStub
    pods: PodServiceStub
    # What became of sessions; these themselves are the routers'.
    session_history: SessionHistoryServiceStub

    conversations: ConversationServiceStub
    revisions: RevisionServiceStub
    branches: BranchServiceStub
    context: ContextServiceStub
    preferences: PreferenceServiceStub
    summaries: SummaryServiceStub
    tool_runs: ToolRunServiceStub
    checkpoints: CheckpointServiceStub
    events: EventLogServiceStub
    transfers: TransferServiceStub
    erasures: ErasureServiceStub
    sync: SyncServiceStub
    # A turn that is opened first; `turns` is the router's way of a whole one.
    open_turns: OpenTurnServiceStub
    watches: WatchServiceStub
    search: SearchServiceStub
    documents: DocumentServiceStub

    routing: RoutingServiceStub
    limits: LimitServiceStub
    # What happens at agents, as it happens; `events` is the log of a conversation.
    agent_events: EventServiceStub
    # What pods hold now; a pod itself has `twofold.pod.PodLink`.
    sessions: SessionServiceStub
    turns: TurnServiceStub

    async def __aenter__(self) -> Self:
        self._channels = [self._opened(target, config) for target, config in self._targets]
        registry, memory, router = self._channels
        self.workspaces = WorkspaceServiceStub(registry)
        self.users = UserServiceStub(registry)
        self.agents = AgentServiceStub(registry)
        self.permissions = PermissionServiceStub(registry)
        self.usage = UsageServiceStub(registry)
        self.terms = TermsServiceStub(registry)
        self.billing = BillingServiceStub(registry)
        self.audit = AuditServiceStub(registry)
        self.changes = ChangeServiceStub(registry)
        self.pods = PodServiceStub(registry)
        self.session_history = SessionHistoryServiceStub(registry)
        self.conversations = ConversationServiceStub(memory)
        self.revisions = RevisionServiceStub(memory)
        self.branches = BranchServiceStub(memory)
        self.context = ContextServiceStub(memory)
        self.preferences = PreferenceServiceStub(memory)
        self.summaries = SummaryServiceStub(memory)
        self.tool_runs = ToolRunServiceStub(memory)
        self.checkpoints = CheckpointServiceStub(memory)
        self.events = EventLogServiceStub(memory)
        self.transfers = TransferServiceStub(memory)
        self.erasures = ErasureServiceStub(memory)
        self.sync = SyncServiceStub(memory)
        self.open_turns = OpenTurnServiceStub(memory)
        self.watches = WatchServiceStub(memory)
        self.search = SearchServiceStub(memory)
        self.documents = DocumentServiceStub(memory)
        self.routing = RoutingServiceStub(router)
        self.limits = LimitServiceStub(router)
        self.agent_events = EventServiceStub(router)
        self.sessions = SessionServiceStub(router)
        self.turns = TurnServiceStub(router)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()
        self._channels = []

    def _opened(self, target: str, config: str) -> grpc.aio.Channel:
        options, passed = channels.options(config), channels.interceptors(self._actor)
        if self._credentials is None:
            return grpc.aio.insecure_channel(target, options=options, interceptors=passed)
        return grpc.aio.secure_channel(target, self._credentials, options=options, interceptors=passed)
