"""Settings of the router."""

from pydantic import Field

from twofold_chassis.settings import ListenSettings, Port, RedisSettings, ServiceSettings

_MIB = 1024 * 1024


class RouterSettings(ListenSettings):
    """Where the router listens, whom it asks, and its bounds."""

    port: Port = Field(default=50053, description="port; 0 takes a free one")
    registry_target: str = Field(default="127.0.0.1:50051", min_length=1, description="host:port of the registry")
    memory_target: str = Field(default="127.0.0.1:50052", min_length=1, description="host:port of the memory")
    peer_timeout_s: float = Field(default=5.0, gt=0, le=60, description="how long one call to a peer may take")
    route_ttl_s: float = Field(default=5.0, gt=0, le=5, description="how old a cached route may be")
    turns_max: int = Field(default=1000, ge=1, description="turns at once in one process; more are refused")
    connect_timeout_s: float = Field(default=5.0, gt=0, le=60, description="how long dialling an agent may take")
    answer_bytes_max: int = Field(
        default=_MIB, ge=1, le=_MIB, description="an agent's answer at most: its text and its tool calls together"
    )
    keep_s: float = Field(
        default=20.0, gt=0, le=600, description="how long keeping an answered turn may take, whatever became of its caller"
    )


class Settings(ServiceSettings):
    """All settings of the router. From the environment: REDIS__HOST, ROUTER__REGISTRY_TARGET, …"""

    redis: RedisSettings = RedisSettings()
    router: RouterSettings = RouterSettings()
