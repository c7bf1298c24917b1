"""Agents: what users talk to, and the URL each lives at."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import ClassVar, NamedTuple, Protocol

from twofold_chassis.prices import Price
from twofold_chassis.refusals import AlreadyExists, FailedPrecondition, InvalidField, NotFound, Reason
from twofold_chassis.requests import Attempt
from twofold_registry.resources import Answer, Edit, Resources

PRICE_MICROS_MAX = 10**12
TARGETS_MAX = 16
WEIGHT_MAX = 1000


class AgentUnknown(NotFound):
    """There is no such agent in the workspace, or it is deleted."""

    reason = Reason.REASON_AGENT_UNKNOWN

    def __init__(self, key: "AgentKey") -> None:
        super().__init__(f"no agent {key.agent_id!r}", workspace_id=key.workspace_id, agent_id=key.agent_id)


class AgentGone(FailedPrecondition):
    """The agent was declared gone: it takes no messages any more, and nobody is granted its use."""

    reason = Reason.REASON_AGENT_GONE

    def __init__(self, key: "AgentKey") -> None:
        super().__init__(f"the agent {key.agent_id!r} is gone", workspace_id=key.workspace_id, agent_id=key.agent_id)


class AgentExists(AlreadyExists):
    """The id is taken, by a deleted agent too."""

    reason = Reason.REASON_AGENT_EXISTS


class AgentState(enum.StrEnum):
    """The state an agent was declared to be in."""

    DRAFT = "draft"
    PUBLISHED = "published"
    PAUSED = "paused"
    GONE = "gone"

    def may_become(self, other: "AgentState") -> bool:
        """Whether the other one can follow: nothing becomes a draft again, and nothing comes back that was gone."""
        return other is self or (self is not AgentState.GONE and other is not AgentState.DRAFT)


class AgentStateFixed(FailedPrecondition):
    """The agent is in a state that the wished one cannot follow."""

    reason = Reason.REASON_AGENT_STATE

    def __init__(self, before: AgentState, after: AgentState) -> None:
        super().__init__(f"{before} agents do not become {after}", state=before.value, wish=after.value)


class ObservedState(enum.StrEnum):
    """What somebody who watches a target has seen."""

    READY = "ready"
    COLD = "cold"
    STARTING = "starting"
    DRAINING = "draining"
    FAILING = "failing"


class ContextDelivery(enum.StrEnum):
    """How earlier messages reach the agent."""

    INSTRUCTIONS = "instructions"
    MESSAGES = "messages"


class AgentKey(NamedTuple):
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
class Target:
    """A URL that takes its share of an agent's messages."""

    name: str
    url: str
    weight: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of a target (empty: the agent's own URL), in one generation of the agent."""

    target: str
    state: ObservedState
    generation: int
    observed_at: datetime
    message: str


@dataclass(frozen=True, slots=True)
class Agent:
    """A service that speaks the chat completions protocol at `url`, or at its targets, if it has some.

    `generation` is the version of the two. `observations` are of this generation, and no part of what was declared.
    """

    kind: ClassVar[str] = "agent"

    workspace_id: str
    agent_id: str
    display_name: str
    url: str
    targets: tuple[Target, ...]
    generation: int
    price: Price
    state: AgentState
    settings: AgentSettings
    observations: tuple[Observation, ...] = ()

    @property
    def path(self) -> tuple[str, ...]:
        return (self.workspace_id, self.agent_id)

    def urls(self) -> Iterator[tuple[str, str]]:
        """Each URL, with the path of its field."""
        yield self.url, "agent.url"
        for index, target in enumerate(self.targets):
            yield target.url, f"agent.targets[{index}].url"

    def edited(self, edit: Edit) -> "Agent":
        """The agent after an update. Raises AgentStateFixed."""
        after: Agent = edit.applied(self)
        if not self.state.may_become(after.state):
            raise AgentStateFixed(self.state, after.state)
        if (after.url, after.targets) == (self.url, self.targets):
            return after
        return replace(after, generation=self.generation + 1, observations=())  # they were of what it has left

    def observed(self, seen: Observation) -> "Agent | ReportOutcome":
        """The agent with this observation in place of the last one of its target, or why it stays as it is.

        Raises InvalidField: the agent has no such generation, or no such target.
        """
        if seen.generation > self.generation:
            raise InvalidField("observation.generation", f"the agent is in generation {self.generation}")
        if seen.generation < self.generation:
            return ReportOutcome.OLDER_GENERATION
        if seen.target and seen.target not in {target.name for target in self.targets}:
            raise InvalidField("observation.target", "is not the name of a target that the agent has")
        known = self.known(seen.target)
        if known is not None and known.observed_at >= seen.observed_at:
            return ReportOutcome.OLDER_OBSERVATION
        others = [each for each in self.observations if each.target != seen.target]
        return replace(self, observations=tuple(sorted([*others, seen], key=lambda each: each.target.encode())))

    def known(self, target: str) -> Observation | None:
        """What is known of a target."""
        return next((each for each in self.observations if each.target == target), None)


class ReportOutcome(enum.Enum):
    """What became of a report."""

    RECORDED = enum.auto()
    OLDER_GENERATION = enum.auto()
    OLDER_OBSERVATION = enum.auto()


@dataclass(frozen=True, slots=True)
class Reported:
    """What became of a report, and the agent's generation."""

    outcome: ReportOutcome
    generation: int


def checked_targets(targets: tuple[Target, ...], field: str) -> tuple[Target, ...]:
    """The targets, if they can be told apart and somebody takes the messages."""
    names = set()
    for index, target in enumerate(targets):
        if target.name in names:
            raise InvalidField(f"{field}[{index}].name", "is the name of another target, too")
        names.add(target.name)
    if targets and not any(target.weight for target in targets):
        raise InvalidField(field, "has no target with a weight above 0")
    return targets


class AgentFilters(NamedTuple):
    """Which agents of a workspace to list; None lets all pass."""

    state: str | None
    display_name_prefix: str | None


class Agents(Resources[Agent], Protocol):
    """The agents that are kept.

    Raises AgentUnknown; a creation AgentExists; whatever writes URLs InvalidField; an update AgentStateFixed.
    """

    async def report(self, key: AgentKey, seen: Observation, attempt: Attempt, answer: Answer[Reported]) -> bytes:
        """Keeps what was seen of a target, unless it is older than what is known. Raises AgentUnknown, InvalidField."""
        ...
