"""Agents: what users talk to, and the URL each lives at."""

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Protocol

from twofold_chassis.refusals import AlreadyExists, InvalidField, NotFound, Reason
from twofold_chassis.requests import Attempt
from twofold_registry import hosts
from twofold_registry.resources import Answer, Edit, Page, Read, Stored

URL_BYTES_MAX = 2048
# RFC 3986 without userinfo, query and fragment, narrower where readers of URLs differ from one another.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>(?:/.*)?)",
    re.IGNORECASE | re.ASCII,  # without ASCII, "K" would be matched by the sign for kelvin
).fullmatch
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*").fullmatch
_PORT_MAX = 65535


class AgentUnknown(NotFound):
    """There is no such agent in the workspace, or it is deleted."""

    reason = Reason.REASON_AGENT_UNKNOWN

    def __init__(self, key: "AgentKey") -> None:
        super().__init__(f"no agent {key.agent_id!r}", workspace_id=key.workspace_id, agent_id=key.agent_id)


class AgentExists(AlreadyExists):
    """The id is taken, by a deleted agent too."""

    reason = Reason.REASON_AGENT_EXISTS


class AgentState(enum.StrEnum):
    """The state an agent was declared to be in."""

    DRAFT = "draft"
    PUBLISHED = "published"
    PAUSED = "paused"


class ContextDelivery(enum.StrEnum):
    """How earlier messages reach the agent."""

    INSTRUCTIONS = "instructions"
    MESSAGES = "messages"


@dataclass(frozen=True, slots=True)
class AgentKey:
    """Which agent."""

    workspace_id: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How a turn calls the agent. Defaults are filled in when they are written, so that readers need none."""

    instructions: str
    model: str
    context_delivery: ContextDelivery
    context_messages_max: int
    context_tokens_max: int
    first_token_timeout: timedelta
    turn_timeout: timedelta


@dataclass(frozen=True, slots=True)
class Agent:
    """A service that speaks the chat completions protocol at `url`."""

    kind: ClassVar[str] = "agent"

    workspace_id: str
    agent_id: str
    display_name: str
    url: str
    state: AgentState
    settings: AgentSettings

    @property
    def path(self) -> tuple[str, ...]:
        return (self.workspace_id, self.agent_id)


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """Where agents may live: `suffixes` are the installation's; loopback is for development only."""

    suffixes: tuple[str, ...]
    allow_loopback: bool

    def admit(self, url: str, workspace_suffixes: Sequence[str], field: str) -> None:
        """Refuses a URL, in the form that `plain_url` gives it, that may lead where no agent lives."""
        match = _URL(url)
        assert match is not None
        host = match["host"]
        problem = self._problem(host, (*self.suffixes, *workspace_suffixes))
        if problem:
            raise InvalidField(field, problem)

    def _problem(self, host: str, suffixes: Sequence[str]) -> str | None:
        address = hosts.address(host)
        if address is not None:
            return None if self.allow_loopback and address.is_loopback else "must name a host, not an IP address"
        if hosts.is_loopback_name(host):
            return None if self.allow_loopback else "must not lead to the machine itself"
        if hosts.is_metadata_name(host):
            return "must not lead to a metadata service"
        if not any(hosts.is_below(host, suffix) for suffix in suffixes):
            return f"the host {host} is not below a suffix that the installation or the workspace allows"
        return None


def plain_url(value: str, field: str) -> str:
    """The URL in lower case (but its path) and without a slash at its end, if every reader understands it alike."""
    if not value:
        raise InvalidField(field, "is required")
    if len(value) > URL_BYTES_MAX:
        raise InvalidField(field, f"is longer than {URL_BYTES_MAX} bytes")
    match = _URL(value)
    if match is None:
        raise InvalidField(field, _why_no_url(value))
    host = match["host"].lower()
    if hosts.address(host) is None and not hosts.is_name(host):
        raise InvalidField(field, "its host is neither a DNS name nor a plainly written IP address")
    if match["port"] is not None and not 1 <= int(match["port"]) <= _PORT_MAX:
        raise InvalidField(field, f"its port must be 1 to {_PORT_MAX}")
    if not _PATH(match["path"]) or not {".", ".."}.isdisjoint(match["path"].split("/")):
        raise InvalidField(field, "its path holds characters or steps that are not allowed")
    port = "" if match["port"] is None else f":{int(match['port'])}"
    return f"{match['scheme'].lower()}://{host}{port}{match['path'].rstrip('/')}"


def _why_no_url(value: str) -> str:
    scheme, colon, rest = value.partition("://")
    authority = rest.partition("/")[0]
    if not value.isascii() or not value.isprintable():
        return "must be printable ASCII: write a host in its xn-- form, and percent-encode a path"
    if not colon or scheme.lower() not in ("http", "https"):
        return "must begin with http:// or https://"
    if "@" in authority:
        return "must not hold a user or password"
    if "?" in rest or "#" in rest:
        return "must not hold a query or fragment"
    return "its host or port is not valid"


class Agents(Protocol):
    """The agents that are kept. Deleted ones, and those of deleted workspaces, are unknown to every method."""

    async def create(self, agent: Agent, attempt: Attempt, answer: Answer[Stored[Agent]]) -> bytes:
        """Raises WorkspaceUnknown, AgentExists, InvalidField (the URL)."""
        ...

    async def get(self, key: AgentKey) -> Read[Stored[Agent]]:
        """Raises AgentUnknown."""
        ...

    async def list(self, workspace_id: str, after: str, size: int) -> Page[Stored[Agent]]:
        """Up to `size` agents whose ids follow `after`, in the order of their ids. Raises WorkspaceUnknown."""
        ...

    async def update(self, key: AgentKey, edit: Edit, etag: str, attempt: Attempt, answer: Answer[Stored[Agent]]) -> bytes:
        """Raises AgentUnknown, EtagMismatch, InvalidField (the URL)."""
        ...

    async def delete(self, key: AgentKey, etag: str, attempt: Attempt, answer: Answer[None]) -> bytes:
        """Hides the agent; from that revision on nobody may use it. Raises AgentUnknown, EtagMismatch."""
        ...
