"""Settings: read once from the environment and `.env`, checked, frozen, and handed down.

Nested names are joined with two underscores: DATABASE__URL, REDIS__HOST, MEMORY__PORT. Each room has a class with the
groups it needs.
"""

from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict, SettingsError

from twofold_chassis import hosts
from twofold_chassis.start import StartError

Port = Annotated[int, Field(ge=0, le=65535)]


def _names(values: tuple[str, ...]) -> tuple[str, ...]:
    lowered = tuple(value.lower() for value in values)
    for value in lowered:
        if not hosts.is_name(value):
            raise ValueError("each must be a DNS name without a leading dot")
    return lowered


UrlSuffixes = Annotated[tuple[str, ...], AfterValidator(_names)]
"""Hosts, and parents of hosts."""


class Group(BaseModel):
    """A group of settings; unknown names in it are refused, so that a typing error cannot pass unnoticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatabaseSettings(Group):
    """Postgres, 16 or newer."""

    url: SecretStr = Field(description="postgresql://user:password@host:port/database of the application role")
    migrate_url: SecretStr | None = Field(
        default=None, description="the same for the owner of the schema; default: DATABASE__URL"
    )
    system_url: SecretStr | None = Field(
        default=None,
        description="the same for the role of work that belongs to no tenant (what follows all changes, sweeps), which"
        " row-level security lets see every workspace; default: DATABASE__URL, and then nothing is kept apart by Postgres",
    )
    replica_url: SecretStr | None = Field(
        default=None,
        description="the same for the application role at a read replica: asked by reads that carry a revision token it has"
        " reached; default: none",
    )
    direct_url: SecretStr | None = Field(
        default=None,
        description="the same for the system role without a pooler in between, for LISTEN: changes of other processes are"
        " heard at once instead of at the next ping; default: none",
    )
    migrate: bool = Field(default=True, description="whether a service brings its schema up to date when it starts")
    prepared_statements: bool = Field(
        default=True, description="false behind PgBouncer in transaction mode before version 1.21"
    )
    pool_size_max: int = Field(default=10, ge=1, le=500, description="connections of one service at most")
    connect_timeout_s: float = Field(default=5.0, gt=0, le=60, description="how long connecting may take")
    command_timeout_s: float = Field(default=5.0, gt=0, le=600, description="the longest one statement may take")

    @field_validator("url", "migrate_url", "system_url", "replica_url", "direct_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_url(value.get_secret_value())
        return value

    @property
    def owner_url(self) -> SecretStr:
        """The URL that migrations use."""
        return self.migrate_url or self.url

    @property
    def system(self) -> "DatabaseSettings":
        """The same server as the system role sees it."""
        return self.model_copy(update={"url": self.system_url or self.url})

    @property
    def keeps_tenants_apart(self) -> bool:
        """Whether the application's role is another one than those that see every workspace.

        Of the owner only a process knows that migrates, or was told who that is.
        """
        others = [self.system_url or self.url]
        if self.migrate or self.migrate_url:
            others.append(self.owner_url)
        return _user(self.url) not in map(_user, others)

    @property
    def owner_setting(self) -> str:
        """The name of the setting that this URL is from."""
        return "DATABASE__MIGRATE_URL" if self.migrate_url else "DATABASE__URL"


def _check_url(url: str) -> None:
    """Says what is wrong with a URL without repeating any of it: it may hold a password."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("must begin with postgresql://")
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None
    if parts is None or parts.fragment or "/" in parts.path[1:] or not all(map(_has_a_port, _hosts(parts.netloc))):
        raise ValueError("is not a URL: special characters in user and password must be percent-encoded")


def _user(url: SecretStr) -> str:
    return unquote(urlsplit(url.get_secret_value()).username or "")


def _hosts(netloc: str) -> list[str]:
    """There may be several, separated by commas."""
    return netloc.rpartition("@")[2].split(",")


def _has_a_port(host: str) -> bool:
    """Whether what stands behind the name, if anything does, is a port."""
    _, colon, port = host.rpartition(":")
    return not colon or host.endswith("]") or not port or port.isdecimal()


def _addresses(text: str) -> list[tuple[str, int]]:
    found = []
    for part in text.split(","):
        host, _, port = part.strip().rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
            raise ValueError("must be host:port, or several of them separated by commas")
        found.append((host.strip("[]"), int(port)))
    return found


class RedisSettings(Group):
    """Redis 6.2 or newer, or Valkey: one server, a master behind sentinels, or a cluster."""

    host: str = Field(default="127.0.0.1", description="name or address of the server, or of any node of a cluster")
    port: Port = Field(default=6379, description="its port")
    username: str | None = Field(default=None, description="user of an ACL; default: the server's default user")
    password: SecretStr | None = Field(default=None, description="password of that user")
    db: int = Field(default=0, ge=0, description="number of the database")
    tls: bool = Field(default=False, description="whether to connect over TLS")
    budget_ms: float = Field(default=50.0, gt=0, le=5000, description="how long one call may wait for Redis")
    allow_eviction: bool = Field(
        default=False, description="whether to go on, with answers marked WEAK, where Redis may evict any key (allkeys-*)"
    )
    cluster: bool = Field(default=False, description="whether it is a Redis Cluster; then REDIS__DB must be 0")
    sentinels: str = Field(
        default="", description="host:port of each sentinel, separated by commas; then REDIS__HOST is not used"
    )
    sentinel_master: str = Field(default="", description="the name under which the sentinels know the master")
    sentinel_password: SecretStr | None = Field(default=None, description="password of the sentinels themselves")

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if bool(self.sentinels) != bool(self.sentinel_master):
            raise ValueError("SENTINELS and SENTINEL_MASTER need each other")
        if self.cluster and (self.sentinels or self.db):
            raise ValueError("a CLUSTER has neither SENTINELS nor another DB than 0")
        return self

    @field_validator("sentinels")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        if value:
            _addresses(value)
        return value

    @property
    def sentinel_addresses(self) -> list[tuple[str, int]]:
        """Host and port of each sentinel."""
        return _addresses(self.sentinels)


class ListenSettings(Group):
    """Where a service listens, and how it ends."""

    host: str = Field(default="127.0.0.1", description="callers are not authenticated yet: keep it on loopback")
    port: Port = Field(default=0, description="port; 0 takes a free one")
    listeners: int = Field(
        default=4,
        ge=1,
        le=16,
        description="servers of the process on its port, over which connections spread (Linux; elsewhere one)",
    )
    metrics_port: Port | None = Field(default=None, description="Prometheus metrics; none by default")
    drain_s: float = Field(default=10.0, ge=0, le=600, description="how long running calls may take at the end")
    deadline_s: float = Field(default=30.0, gt=0, le=3600, description="deadline of a call that brings none")
    stream_deadline_s: float = Field(default=3600.0, gt=0, le=86400, description="the same for calls that stream")
    message_bytes_max: int = Field(
        default=4 * 1024 * 1024, ge=1024, le=64 * 1024 * 1024, description="size of one request or answer at most"
    )
    streams_max: int = Field(default=1000, ge=1, description="calls at a time on one connection")


class LogSettings(Group):
    """Logs go to standard output, one line an event."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="the least that is logged")
    format: Literal["json", "text"] = Field(default="json", description="JSON for machines, text for people")
    sample_every: int = Field(
        default=100,
        ge=1,
        description="of calls that went well and fast, one in so many is logged; all others always",
    )
    slow_ms: float = Field(default=500.0, gt=0, description="a call that takes longer is always logged")


class ServiceSettings(BaseSettings):
    """What all services share; a room adds its own groups."""

    model_config = SettingsConfigDict(
        frozen=True, env_nested_delimiter="__", env_file=".env", env_file_encoding="utf-8", extra="ignore"
    )

    log: LogSettings = LogSettings()


Settings = TypeVar("Settings", bound=ServiceSettings)


def load(kind: type[Settings]) -> Settings:
    """Reads and checks the settings, or raises StartError naming each setting that is wrong (never its value)."""
    try:
        return kind()
    except ValidationError as error:
        problems = [
            f"{name}: {item['msg']}"
            for item in error.errors(include_input=False)
            for name in (_missing(kind, item["loc"]) if item["type"] == "missing" else [_name(item["loc"])])
        ]
    except SettingsError:
        problems = [f"{name}: must be written as JSON" for name in _not_json(kind)]
    except UnicodeDecodeError:
        problems = [f"the file {kind.model_config['env_file']} is not UTF-8"]
    except OSError as error:
        problems = [f"the file {error.filename} cannot be read: {error.strerror}"]
    raise StartError(f"wrong settings: {'; '.join(problems)}") from None


def _name(location: tuple[int | str, ...]) -> str:
    return "__".join(str(step).upper() for step in location)


def _missing(kind: type[ServiceSettings], location: tuple[int | str, ...]) -> list[str]:
    """The settings to set where one is missing: of a whole group, those in it that are required."""
    group = kind.model_fields[str(location[0])].annotation
    if len(location) > 1 or not isinstance(group, type) or not issubclass(group, Group):
        return [_name(location)]
    return [_name((*location, name)) for name, field in group.model_fields.items() if field.is_required()]


def _not_json(kind: type[ServiceSettings]) -> list[str]:
    """The variables that must hold JSON and do not. The library names their group only, so each is read alone."""
    names = set()
    for source in (EnvSettingsSource(kind), DotEnvSettingsSource(kind)):
        for name, value in source.env_vars.items():
            source.env_vars = {name: value}
            try:
                source()
            except SettingsError:
                names.add(name.upper())
    return sorted(names)
