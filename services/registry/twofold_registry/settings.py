"""Settings of the registry service."""

from pydantic import Field, SecretStr, field_validator

from twofold_chassis.settings import DatabaseSettings, ListenSettings, Port, ServiceSettings, UrlSuffixes
from twofold_registry.audit_keys import AuditKeys, private_key, public_key


class RegistrySettings(ListenSettings):
    """The service itself."""

    port: Port = Field(default=50051, description="port; 0 takes a free one")
    url_suffixes: UrlSuffixes = Field(
        default=("svc.cluster.local",), description="hosts, and parents of hosts, that any workspace's agents may have"
    )
    lease_ms: int = Field(
        default=1000,
        ge=100,
        le=60_000,
        description="how long routers may answer from what they know; the same as theirs: who waits for all waits so long",
    )
    watchers_max: int = Field(default=1000, ge=1, description="how many may follow all changes at this process")
    sweep_period_s: float = Field(
        default=10.0, gt=0, le=3600, description="how often this process looks for what can be cleared away"
    )
    changes_kept_s: int = Field(
        default=3600, ge=600, description="for how long changes are kept for those who follow them and were away"
    )
    sessions_kept_days: int = Field(
        default=90,
        ge=1,
        le=36_500,
        description="for how long the history of sessions is kept at most, after each was heard of last",
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

    long_pool_size_max: int = Field(
        default=3, ge=1, le=100, description="connections for long work, such as verifying the audit, besides the others"
    )
    long_command_timeout_s: float = Field(
        default=30, gt=0, le=600, description="the longest that one statement of long work may take"
    )
    audit_signing_key: SecretStr | None = Field(
        default=None,
        description="Ed25519 private key that signs heads of the audit: its 32 bytes in base64, or PEM (PKCS #8); default:"
        " none, and heads cannot be exported",
    )
    audit_former_keys: tuple[str, ...] = Field(
        default=(), description="public keys, 32 bytes in base64, of former signing keys: what they signed still counts"
    )

    @field_validator("audit_signing_key")
    @classmethod
    def _is_private_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        private_key(value.get_secret_value())
        return value

    @field_validator("audit_former_keys")
    @classmethod
    def _are_public_keys(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            public_key(value)
        return values

    @property
    def audit_keys(self) -> AuditKeys:
        """The keys that these settings name."""
        secret = self.audit_signing_key
        private = private_key(secret.get_secret_value()) if secret else None
        return AuditKeys(private, [public_key(value) for value in self.audit_former_keys])

    purge_after_days: int = Field(
        default=30, ge=1, le=3650, description="days that deleted workspaces, users and agents can be restored"
    )


class Settings(ServiceSettings):
    """All groups of the registry service."""

    database: DatabaseSettings
    registry: RegistrySettings = RegistrySettings()
