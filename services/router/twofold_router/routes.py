"""Routes: what a turn needs to know of an agent, and which of its targets takes whose messages."""

import math
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

from twofold_chassis.prices import FREE, Price
from twofold_chassis.refusals import NotFound, Reason
from twofold_router.agents import Limits


class AgentUnknown(NotFound):
    """There is no such agent."""

    reason = Reason.REASON_AGENT_UNKNOWN

    def __init__(self, agent: "AgentKey") -> None:
        super().__init__(f"no agent {agent.agent_id!r}", workspace_id=agent.workspace_id, agent_id=agent.agent_id)


class AgentKey(NamedTuple):
    """Which agent."""

    workspace_id: str
    agent_id: str


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How a turn calls the agent."""

    instructions: str
    model: str
    as_messages: bool
    context_messages_max: int
    context_tokens_max: int
    limits: Limits


class TargetState(StrEnum):
    """What a target is about. The agent of one that is gone was declared so: it takes no messages, and never will."""

    READY = "ready"
    COLD = "cold"
    STARTING = "starting"
    DRAINING = "draining"
    FAILING = "failing"
    GONE = "gone"


class Observation(NamedTuple):
    """What somebody saw of a target in the current generation, and when, in seconds since 1970."""

    state: TargetState
    seen_s: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that takes its share of an agent's messages, and what the registry knows to have been seen of it last."""

    name: str
    url: str
    weight: int
    seen: Observation | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """What the registry says of an agent. `generation` rises with every change of its URL or targets.

    `gone`: it takes no messages, and never will. `targets`: how they are split; without them everything goes to `url`.
    `seen`: what was seen of `url`. `price`: what its use costs now.
    """

    url: str
    published: bool
    settings: AgentSettings
    generation: int = 0
    gone: bool = False
    targets: tuple[Target, ...] = ()
    seen: Observation | None = None
    price: Price = FREE

    def takers(self) -> list[Target]:
        """Those who take messages; without targets the agent's own URL does, under no name."""
        return [target for target in self.targets if target.weight > 0] or [Target("", self.url, 1, self.seen)]


def preferred(targets: list[Target], agent: AgentKey, user_id: str) -> list[Target]:
    """The targets in the order in which this user's messages go to them.

    The same for every router, and changed for as few users as a change of weights allows; where the first cannot take them,
    its users are spread over the others by weight, and those of the others stay.
    """
    if len(targets) == 1:
        return targets
    return sorted(targets, key=lambda target: _score(target, agent, user_id), reverse=True)


def _score(target: Target, agent: AgentKey, user_id: str) -> float:
    # Weighted rendezvous: each target draws a number for the user, and the highest wins as often as its weight says.
    told = "\0".join((agent.workspace_id, agent.agent_id, user_id, target.name)).encode()  # no id holds a NUL
    drawn = int.from_bytes(blake2b(told, digest_size=8).digest(), "big") >> 12
    return target.weight / -math.log((drawn + 0.5) / 2**52)  # of 52 bits, so that no fraction is rounded to 1
