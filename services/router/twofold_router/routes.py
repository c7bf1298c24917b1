"""Routes: what a turn needs to know of an agent, and which of its targets takes whose messages."""

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

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


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that takes its share of an agent's messages."""

    name: str
    url: str
    weight: int


@dataclass(frozen=True, slots=True)
class Route:
    """What the registry says of an agent. `generation` rises with every change of its URL or targets.

    `gone`: it takes no messages, and never will. `targets`: how they are split; without them everything goes to `url`.
    """

    url: str
    published: bool
    settings: AgentSettings
    generation: int = 0
    gone: bool = False
    targets: tuple[Target, ...] = ()

    def target_for(self, agent: AgentKey, user_id: str) -> Target:
        """Where this user's messages go: the same for every router, and changed for as few as a change of weights allows."""
        sharing = [target for target in self.targets if target.weight > 0]
        if not sharing:
            return Target("", self.url, 1)
        return max(sharing, key=lambda target: _score(target, agent, user_id))


def _score(target: Target, agent: AgentKey, user_id: str) -> float:
    # Weighted rendezvous: each target draws a number for the user, and the highest wins as often as its weight says.
    told = "\0".join((agent.workspace_id, agent.agent_id, user_id, target.name)).encode()  # no id holds a NUL
    drawn = int.from_bytes(blake2b(told, digest_size=8).digest(), "big") >> 12
    return target.weight / -math.log((drawn + 0.5) / 2**52)  # of 52 bits, so that no fraction is rounded to 1
