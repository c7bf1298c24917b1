"""Prompts: what an agent is told of a conversation, in the way its settings ask for."""

from collections.abc import Sequence

from twofold_chassis.lines import escaped
from twofold_chassis.refusals import InvalidField
from twofold_router.agents import Message, Prompt, estimated_tokens
from twofold_router.asks import Ask
from twofold_router.conversations import Context
from twofold_router.routes import Route


def prompt(ask: Ask, route: Route, url: str, context: Context) -> Prompt:
    """The agent's instructions, the call's and the context; then, if it wants them so, earlier messages; then what is said.

    Results of tools come behind the exchange that called for them, whichever way the context is delivered.
    """
    settings = route.settings
    earlier = well_formed(context.messages, goes_on=bool(ask.results))
    if settings.as_messages:
        told, shown = _told(context, ()), earlier
    elif ask.results:
        begins = _exchange_begins(earlier)
        told, shown = _told(context, earlier[:begins]), earlier[begins:]
    else:
        told, shown = context.text, []
    system = "\n\n".join(part for part in (settings.instructions, ask.instructions, told) if part)
    return Prompt(
        agent_id=ask.question.agent.agent_id,
        url=url,
        model=settings.model,
        user_id=ask.question.user_id,
        messages=(*([Message("system", system)] if system else []), *shown, *ask.words),
        limits=settings.limits,
        tools=ask.tools,
    )


def require_called(ask: Ask, context: Context) -> None:
    """Refuses results that are not those of all the tools that the newest answer of the conversation calls."""
    newest = context.messages[-1] if context.messages else None
    called = {call.id for call in newest.tool_calls} if newest is not None and newest.role == "assistant" else set()
    for index, result in enumerate(ask.results):
        if result.call_id not in called:
            raise InvalidField(f"tool_results[{index}].tool_call_id", "is not of a call in the conversation's newest answer")
    missing = called - {result.call_id for result in ask.results}
    if missing:
        raise InvalidField(
            "tool_results", f"lack the result of {len(missing)} of the calls in the conversation's newest answer"
        )


def well_formed(messages: Sequence[Message], *, goes_on: bool) -> list[Message]:
    """The messages without calls of tools that nothing answers, and without results that no call asked for.

    A conversation holds such where somebody went on with another message; agents' APIs refuse them. `goes_on`: the results
    of the newest calls are about to come.
    """
    formed: list[Message] = []
    for index, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id in _answered(formed):
                formed.append(message)
        elif message.tool_calls:
            results = {each.tool_call_id for each in _results_behind(messages, index)}
            is_newest = goes_on and index == len(messages) - 1
            if is_newest or {call.id for call in message.tool_calls} <= results:
                formed.append(message)
            elif message.content:
                formed.append(Message(message.role, message.content, name=message.name))
        else:
            formed.append(message)
    return formed


def input_tokens(prompt: Prompt) -> int:
    """An estimate of the tokens that the agent reads."""
    return estimated_tokens(sum(_size_bytes(message) for message in prompt.messages))


def _results_behind(messages: Sequence[Message], index: int) -> list[Message]:
    results = []
    for message in messages[index + 1 :]:
        if message.role != "tool":
            break
        results.append(message)
    return results


def _answered(formed: Sequence[Message]) -> set[str]:
    """The calls that a result at this place may answer."""
    for message in reversed(formed):
        if message.role != "tool":
            return {call.id for call in message.tool_calls}
    return set()


def _exchange_begins(messages: Sequence[Message]) -> int:
    """Where the newest thing stands that the user said."""
    return max((index for index, message in enumerate(messages) if message.role == "user"), default=0)


def _size_bytes(message: Message) -> int:
    texts = [message.content or "", *(call.arguments for call in message.tool_calls)]
    return sum(len(text.encode()) for text in texts)


def _told(context: Context, messages: Sequence[Message]) -> str:
    """The context as text, with these messages, in memory's words and escaped as there: a value cannot forge a line."""
    blocks = []
    if context.summary:
        blocks.append(f"Summary of the earlier conversation:\n{escaped(context.summary)}")
    if messages:
        said = [f"{message.role}: {escaped(message.content or '')}" for message in messages]
        blocks.append("\n".join(["Previous conversation:", *said]))
    if context.preferences:
        lines = [f"{escaped(key)}: {escaped(value)}" for key, value in context.preferences]
        blocks.append("\n".join(["User preferences:", *lines]))
    if context.documents:
        lines = [f"{escaped(name)}: {escaped(url)}" if url else escaped(name) for name, url in context.documents]
        blocks.append("\n".join(["Documents:", *lines]))
    return "\n\n".join(blocks)
