"""Asks: what a caller wants of an agent."""

from dataclasses import dataclass

from twofold_router.agents import Message, Tool
from twofold_router.conversations import Policy, TurnKey
from twofold_router.resolution import Question


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool returned."""

    call_id: str
    content: str


@dataclass(frozen=True, slots=True)
class Name:
    """Which turn: an operation is its user's."""

    workspace_id: str
    user_id: str
    operation_id: str


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller asks for. `turn_is_new` if the caller cannot have sent it before: its operation id was made here.

    Either `message` is said, or `results` go on with what the agent called tools for.
    """

    question: Question
    thread_id: str | None
    operation_id: str
    turn_is_new: bool
    message: str
    instructions: str = ""
    tools: tuple[Tool, ...] = ()
    results: tuple[ToolResult, ...] = ()
    keep_running: bool = False
    policy: Policy = Policy.REJECT
    queue_wait_s: float = 0.0

    @property
    def name(self) -> Name:
        """Under which it is found."""
        return Name(self.question.agent.workspace_id, self.question.user_id, self.operation_id)

    @property
    def turn(self) -> TurnKey | None:
        """The turn in memory; None for one that is not kept."""
        if self.thread_id is None:
            return None
        return TurnKey(self.question.agent.workspace_id, self.thread_id, self.operation_id)

    @property
    def words(self) -> tuple[Message, ...]:
        """What is said to the agent, besides all that was said before."""
        if self.results:
            return tuple(Message("tool", result.content, tool_call_id=result.call_id) for result in self.results)
        return (Message("user", self.message),)

    def wants_the_same(self, other: "Ask") -> bool:
        """Whether this is the same operation once more, and not another one under its id."""
        mine, its = (
            (ask.question.agent, ask.thread_id, ask.message, ask.instructions, ask.tools, ask.results)
            for ask in (self, other)
        )
        return mine == its
