"""Settings of the router."""

from pydantic import Field, field_validator

from twofold_chassis.settings import ListenSettings, Port, RedisSettings, ServiceSettings, UrlSuffixes
from twofold_chassis.urls import UrlPolicy

_MIB = 1024 * 1024


class RouterSettings(ListenSettings):
    """Where the router listens, whom it asks, and its bounds."""

    port: Port = Field(default=50053, description="port; 0 takes a free one")
    registry_target: str = Field(default="127.0.0.1:50051", min_length=1, description="host:port of the registry")
    memory_target: str = Field(default="127.0.0.1:50052", min_length=1, description="host:port of the memory")
    peer_timeout_s: float = Field(default=5.0, gt=0, le=60, description="how long one call to a peer may take")
    lease_ms: int = Field(
        default=1000,
        ge=100,
        le=60_000,
        description="for how long copies may be answered from without the registry's word that nothing has changed; the same"
        " as REGISTRY__LEASE_MS",
    )
    ping_ms: int = Field(default=250, ge=10, le=20_000, description="how often the registry is asked for its word")
    silence_ms: int = Field(default=700, ge=50, le=60_000, description="after how long without it the stream counts as lost")
    copies_max: int = Field(
        default=100_000, ge=1, description="permissions, routes, and terms, that a process keeps copies of at most of each"
    )
    cold_reads_max: int = Field(
        default=64, ge=3, le=10_000, description="questions to the registry that may be under way at once; more are refused"
    )
    limit_cells: int = Field(
        default=12,
        ge=12,
        le=60,
        description="into how many cells the span of a limit is cut: 12, 15, 20, 30 or 60. With more of them less is refused"
        " too early, and each message costs more; the same for all routers",
    )
    rebuild_wait_ms: int = Field(
        default=250,
        ge=0,
        le=5000,
        description="for how long a message waits for lost counters to be set up anew, before this router's share counts",
    )
    redis_time: bool = Field(
        default=True, description="whether scripts in Redis may ask it for the time; else the router's own clock counts"
    )
    url_suffixes: UrlSuffixes = Field(
        default=("svc.cluster.local",),
        description="hosts, and parents of hosts, that any workspace's agents may have; the same as REGISTRY__URL_SUFFIXES",
    )
    allow_loopback_urls: bool = Field(
        default=False, description="whether agents may live on this machine itself: for development only"
    )
    require_namespaces: bool = Field(
        default=False,
        description="whether agents may live in the cluster only if their workspace has a Kubernetes namespace; the same as"
        " REGISTRY__REQUIRE_NAMESPACES",
    )
    turns_max: int = Field(default=1000, ge=1, description="turns at once in one process; more are refused")
    connect_timeout_s: float = Field(default=5.0, gt=0, le=60, description="how long dialling an agent may take")
    answer_bytes_max: int = Field(
        default=_MIB, ge=1, le=_MIB, description="an agent's answer at most: its text and its tool calls together"
    )
    keep_s: float = Field(
        default=20.0, gt=0, le=600, description="how long keeping an answered turn may take, whatever became of its caller"
    )
    advertise: str = Field(
        default="",
        max_length=200,
        description="how others reach this very process, host:port: told to who looks for a turn that runs here",
    )
    turn_lease_s: float = Field(
        default=15.0,
        ge=0.1,
        le=600,
        description="for how long memory keeps a turn for a router that gives no sign of life; it gives three in this time",
    )
    detached_s: float = Field(
        default=5.0,
        ge=0,
        le=600,
        description="how long a turn goes on that nobody listens to any more, unless it is to keep running; 0: not at all",
    )
    cold_start_s: float = Field(
        default=10.0, ge=0, le=600, description="how long an agent that cannot be dialled is tried again"
    )
    usage_sweep_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="how often usage that the registry has not heard of is looked for, once it is as old",
    )
    event_log_entries_max: int = Field(
        default=1000, ge=500, le=100_000, description="events that an agent's log keeps at most; older ones go, as a gap"
    )
    event_log_bytes_max: int = Field(
        default=_MIB, ge=_MIB, le=16 * _MIB, description="bytes of an agent's log at most; older events go, as a gap"
    )
    event_log_ttl_s: float = Field(
        default=86_400.0,
        ge=60,
        le=30 * 86_400,
        description="how long an agent's log is kept after its last event, or its last subscriber; what Redis needs for"
        " events is the two bounds above times the agents that had any in this time",
    )
    event_poll_ms: int = Field(
        default=2000,
        ge=50,
        le=60_000,
        description="how often the logs that somebody follows are looked at whether or not anything was heard of them: how"
        " late an event may come while channels are not heard",
    )
    event_probe_ms: int = Field(
        default=2000,
        ge=50,
        le=60_000,
        description="how often it is tried whether channels are heard; after two times that they were not, their connection"
        " is made anew",
    )
    event_heartbeat_s: float = Field(
        default=15.0, gt=0, le=600, description="after how long without an event a subscriber is told that its stream lives"
    )
    event_subscribers_max: int = Field(
        default=10_000, ge=1, description="streams of events in one process; more are refused"
    )

    pod_lease_ms: int = Field(
        default=10_000,
        ge=200,
        le=600_000,
        description="for how long a pod holds its sessions after its last heartbeat; the same for all routers",
    )
    pod_heartbeat_ms: int = Field(
        default=3000, ge=50, le=120_000, description="how often a pod sends a heartbeat: at most a third of its lease"
    )
    pod_links_max: int = Field(default=1000, ge=1, description="pods that have their link to one process; more are refused")
    pod_sessions_max: int = Field(
        default=10_000, ge=1, le=100_000, description="sessions that a pod may hold; more are refused"
    )
    user_sessions_max: int = Field(
        default=100, ge=1, le=10_000, description="sessions that a user may have; more are refused"
    )
    pod_queue_bytes_max: int = Field(
        default=_MIB,
        ge=128 * 1024,
        le=64 * _MIB,
        description="bytes that wait for a pod that is slow to take them; then its link is cut",
    )

    @field_validator("limit_cells")
    @classmethod
    def _cuts_a_minute_into_seconds(cls, value: int) -> int:
        if 60 % value:
            raise ValueError("must be 12, 15, 20, 30 or 60")
        return value

    @property
    def url_policy(self) -> UrlPolicy:
        """Where agents may live."""
        return UrlPolicy(self.url_suffixes, self.allow_loopback_urls, self.require_namespaces)


class Settings(ServiceSettings):
    """All settings of the router. From the environment: REDIS__HOST, ROUTER__REGISTRY_TARGET, …"""

    redis: RedisSettings = RedisSettings()
    router: RouterSettings = RouterSettings()
