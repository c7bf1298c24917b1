"""Settings of the registry service."""

from pydantic import Field, field_validator

from twofold_chassis.settings import DatabaseSettings, ListenSettings, Port, ServiceSettings
from twofold_registry import hosts


class RegistrySettings(ListenSettings):
    """The service itself."""

    port: Port = Field(default=50051, description="port; 0 takes a free one")
    url_suffixes: tuple[str, ...] = Field(
        default=("svc.cluster.local",), description="hosts, and parents of hosts, that any workspace's agents may have"
    )
    lease_ms: int = Field(
        default=1000,
        ge=100,
        le=60_000,
        description="how long routers may answer from what they know; the same as theirs: who waits for all waits so long",
    )
    watchers_max: int = Field(default=1000, ge=1, description="how many may follow all changes at this process")
    changes_kept_s: int = Field(
        default=3600, ge=600, description="for how long changes are kept for those who follow them and were away"
    )
    sessions_kept_days: int = Field(
        default=90, ge=1, le=36_500, description="for how long the history of sessions is kept after it was heard of last"
    )
    pods_kept_days: int = Field(
        default=30,
        ge=2,
        le=3650,
        description="a pod that nobody asks about for so long is marked dead; a dead one is forgotten after so long",
    )
    allow_loopback_urls: bool = Field(
        default=False, description="whether agents may live on this machine itself: for development only"
    )

    require_namespaces: bool = Field(
        default=False,
        description="whether agents may live in the cluster only if their workspace has a Kubernetes namespace",
    )

    @field_validator("url_suffixes")
    @classmethod
    def _are_names(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        lowered = tuple(value.lower() for value in values)
        for value in lowered:
            if not hosts.is_name(value):
                raise ValueError("each must be a DNS name without a leading dot")
        return lowered


class Settings(ServiceSettings):
    """All groups of the registry service."""

    database: DatabaseSettings
    registry: RegistrySettings = RegistrySettings()
