"""Prompts: what an agent is told of a conversation, in the way its settings ask for."""

from twofold_chassis.lines import escaped
from twofold_router.agents import Message, Prompt, estimated_tokens
from twofold_router.conversations import Context
from twofold_router.routes import AgentKey, Route


def prompt(
    agent: AgentKey, route: Route, url: str, user_id: str, instructions: str, context: Context, message: str
) -> Prompt:
    """The agent's instructions, the call's and the context; then, if it wants them so, earlier messages; then `message`."""
    settings = route.settings
    told = _beside_messages(context) if settings.as_messages else context.text
    system = "\n\n".join(part for part in (settings.instructions, instructions, told) if part)
    messages = [Message("system", system)] if system else []
    if settings.as_messages:
        messages.extend(context.messages)
    messages.append(Message("user", message))
    return Prompt(
        agent_id=agent.agent_id,
        url=url,
        model=settings.model,
        user_id=user_id,
        messages=tuple(messages),
        limits=settings.limits,
    )


def input_tokens(prompt: Prompt) -> int:
    """An estimate of the tokens that the agent reads."""
    return estimated_tokens(sum(_size_bytes(message) for message in prompt.messages))


def _size_bytes(message: Message) -> int:
    texts = [message.content or "", *(call.arguments for call in message.tool_calls)]
    return sum(len(text.encode()) for text in texts)


def _beside_messages(context: Context) -> str:
    """What there is besides the messages, in memory's words and escaped as memory does: a value cannot forge a line."""
    blocks = []
    if context.summary:
        blocks.append(f"Summary of the earlier conversation:\n{escaped(context.summary)}")
    if context.preferences:
        lines = [f"{escaped(key)}: {escaped(value)}" for key, value in context.preferences]
        blocks.append("\n".join(["User preferences:", *lines]))
    if context.documents:
        lines = [f"{escaped(name)}: {escaped(url)}" if url else escaped(name) for name, url in context.documents]
        blocks.append("\n".join(["Documents:", *lines]))
    return "\n\n".join(blocks)
