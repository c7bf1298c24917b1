"""Settings of the router."""

from pydantic import Field

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
        default=100_000, ge=1, description="permissions, and routes, that a process keeps copies of at most"
    )
    cold_reads_max: int = Field(
        default=64, ge=1, le=10_000, description="questions to the registry that may be under way at once; more are refused"
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

    @property
    def url_policy(self) -> UrlPolicy:
        """Where agents may live."""
        return UrlPolicy(self.url_suffixes, self.allow_loopback_urls, self.require_namespaces)


class Settings(ServiceSettings):
    """All settings of the router. From the environment: REDIS__HOST, ROUTER__REGISTRY_TARGET, …"""

    redis: RedisSettings = RedisSettings()
    router: RouterSettings = RouterSettings()
