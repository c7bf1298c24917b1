"""Rows of the database ↔ values of the domain."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import asyncpg
from asyncpg import Record

from twofold_chassis.prices import Price
from twofold_chassis.refusals import InvalidField
from twofold_registry.agents import (
    Agent,
    AgentSettings,
    AgentState,
    ContextDelivery,
    Observation,
    ObservedState,
    Target,
)
from twofold_registry.audit import Entry
from twofold_registry.permissions import Grant, GrantKey
from twofold_registry.resources import Kind, Page, Read, Stored
from twofold_registry.revisions import Revision
from twofold_registry.users import Role, User, UserState
from twofold_registry.workspaces import Limit, LimitKind, Retention, Workspace, WorkspaceSettings, WorkspaceState

Item = TypeVar("Item")
_MICROSECOND = timedelta(microseconds=1)


class PastRewritten(Exception):  # noqa: N818  (a state, not an error)
    """The epoch is that of another Postgres, or of another past: it is renewed, and what was read is read again."""


def read(row: Record, value: Item) -> Read[Item]:
    """What was read, at the head that stood beside it."""
    if row["epoch"] is None:
        raise PastRewritten
    return Read(value, Revision(row["epoch"], row["head_revision"]))


def page(items: Sequence[Item], size: int) -> Page[Item]:
    """The page that a statement gave which was asked for one item more."""
    return Page(items[:size], more=len(items) > size)


@contextlib.contextmanager
def sums_that_fit(field: str, otherwise: str) -> Iterator[None]:
    """A sum of more than 64 bits is the fault of this field, never a wrong number. Raises InvalidField."""
    try:
        yield
    except asyncpg.NumericValueOutOfRangeError:
        raise InvalidField(field, otherwise) from None


def _stored(row: Record, value: Kind) -> Stored[Kind]:
    return Stored(value, row["created_at"], row["updated_at"], row["revision"], row["deleted_at"], row["purge_at"])


def workspace(row: Record) -> Stored[Workspace]:
    value = Workspace(
        workspace_id=row["workspace_id"],
        display_name=row["display_name"],
        namespace=row["namespace"],
        plan=row["plan"],
        state=WorkspaceState(row["state"]),
        settings=WorkspaceSettings(
            limits=limits(row),
            allowed_url_suffixes=tuple(row["allowed_url_suffixes"]),
            retention=Retention(row["conversation_days"], row["session_days"]),
        ),
    )
    return _stored(row, value)


def workspace_values(value: Workspace) -> tuple[object, ...]:
    settings = value.settings
    return (
        value.display_name,
        value.namespace,
        value.plan,
        value.state.value,
        *_limit_values(settings.limits),
        settings.allowed_url_suffixes,
        settings.retention.conversation_days,
        settings.retention.session_days,
    )


def limits(row: Record, whose: str = "") -> tuple[Limit, ...]:
    """Limits in three columns; `whose` stands before their names."""
    kinds, amounts, shadows = (row[f"{whose}limit_{column}"] for column in ("kinds", "amounts", "shadows"))
    return tuple(map(Limit, map(LimitKind, kinds), amounts, shadows))


def _limit_values(limits: Sequence[Limit]) -> tuple[list[str], list[int], list[bool]]:
    return (
        [limit.kind.value for limit in limits],
        [limit.amount for limit in limits],
        [limit.is_shadow for limit in limits],
    )


def user(row: Record) -> Stored[User]:
    value = User(
        workspace_id=row["workspace_id"],
        user_id=row["user_id"],
        email=row["email"],
        identity_id=row["identity_id"],
        display_name=row["display_name"],
        role=Role(row["role"]),
        state=UserState(row["state"]),
        limits=limits(row),
    )
    return _stored(row, value)


def user_values(value: User) -> tuple[object, ...]:
    return (
        value.email,
        value.identity_id,
        value.display_name,
        value.role.value,
        value.state.value,
        *_limit_values(value.limits),
    )


def agent(row: Record) -> Stored[Agent]:
    settings = AgentSettings(
        instructions=row["instructions"],
        model=row["model"],
        context_delivery=ContextDelivery(row["context_delivery"]),
        context_messages_max=row["context_messages_max"],
        context_tokens_max=row["context_tokens_max"],
        first_token_timeout=row["first_token_timeout_us"] * _MICROSECOND,
        turn_timeout=row["turn_timeout_us"] * _MICROSECOND,
    )
    value = Agent(
        workspace_id=row["workspace_id"],
        agent_id=row["agent_id"],
        display_name=row["display_name"],
        url=row["url"],
        targets=tuple(map(Target, row["target_names"], row["target_urls"], row["target_weights"])),
        generation=row["generation"],
        price=Price(row["price_message_micros"], row["price_input_micros"], row["price_output_micros"], row["currency"]),
        state=AgentState(row["state"]),
        settings=settings,
        observations=_observations(row),
    )
    return _stored(row, value)


def _observations(row: Record) -> tuple[Observation, ...]:
    columns = (row[f"observed_{name}"] for name in ("targets", "states", "generations", "times", "messages"))
    found = zip(*columns, strict=True)
    return tuple(Observation(target, ObservedState(state), *others) for target, state, *others in found)


def agent_values(value: Agent) -> tuple[object, ...]:
    settings = value.settings
    return (
        value.display_name,
        value.url,
        [target.name for target in value.targets],
        [target.url for target in value.targets],
        [target.weight for target in value.targets],
        value.generation,
        value.price.per_message_micros,
        value.price.per_1000_input_tokens_micros,
        value.price.per_1000_output_tokens_micros,
        value.price.currency,
        value.state.value,
        settings.instructions,
        settings.model,
        settings.context_delivery.value,
        settings.context_messages_max,
        settings.context_tokens_max,
        settings.first_token_timeout // _MICROSECOND,
        settings.turn_timeout // _MICROSECOND,
    )


def grant(row: Record, key: GrantKey) -> Grant:
    return Grant(key, row["expires_at"], row["granted_by"], row["granted_at"])


def listed_grant(row: Record) -> Grant:
    return grant(row, GrantKey(row["workspace_id"], row["user_id"], row["agent_id"]))


def entry(row: Record) -> Entry:
    return Entry(
        seq=row["seq"],
        revision=row["revision"],
        ordinal=row["ordinal"],
        actor=row["actor"],
        action=row["action"],
        resource_kind=row["resource_kind"],
        resource_id=row["resource_id"],
        before=row["before_json"],
        after=row["after_json"],
        request_id=row["request_id"],
        at=row["created_at"],
    )


def entry_values(value: Entry, prev_hash: bytes, new_hash: bytes) -> tuple[object, ...]:
    return (
        value.seq,
        value.revision,
        value.ordinal,
        value.actor,
        value.action,
        value.resource_kind,
        value.resource_id,
        value.before,
        value.after,
        value.request_id,
        value.at,
        prev_hash,
        new_hash,
    )
