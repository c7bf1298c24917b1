"""Agents: what one is asked, what it answers, and how it can fail."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from twofold_chassis.refusals import DeadlineExceeded, Reason, Unavailable


class AgentUnreachable(Unavailable):
    """The agent could not be dialled: nothing was sent to it."""

    reason = Reason.REASON_AGENT_UNREACHABLE


class AgentFailed(Unavailable):
    """The agent answered with an error, with something that is not the protocol, or hung up midway."""

    reason = Reason.REASON_AGENT_FAILED


class AgentTimeout(DeadlineExceeded):
    """The agent was reached, but did not answer within its limits."""

    reason = Reason.REASON_AGENT_TIMEOUT


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The agent's wish to call a tool; `arguments` is the text that the model wrote."""

    id: str
    type: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One thing that was said. `role`: system, user, assistant or tool. No content is not the same as an empty one."""

    role: str
    content: str | None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an agent may take until its first token, and for the whole turn."""

    first_token_s: float
    turn_s: float


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that an agent may call; `parameters` is the text of a JSON object, or empty."""

    name: str
    description: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an agent is asked."""

    agent_id: str
    url: str
    model: str
    user_id: str
    messages: tuple[Message, ...]
    limits: Limits
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a turn consumed, in tokens."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An agent's complete answer. `usage` is None if the agent did not report one."""

    text: str | None
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    usage: Usage | None


class Agents(Protocol):
    """The way to the agents."""

    def answer(self, prompt: Prompt) -> AsyncGenerator[str | Usage | Answer, None]:
        """Pieces of the answer's text as they come, what it has consumed whenever the agent says so, the whole Answer last.

        Closing the generator hangs up on the agent. Refuses with AgentUnreachable or UrlForbidden (nothing was sent), with
        AgentFailed or AgentTimeout.
        """
        ...


def estimated_tokens(size_bytes: int) -> int:
    """What a text of this size is taken for where nobody counted: a quarter of its bytes, rounded up."""
    return -(-size_bytes // 4)
