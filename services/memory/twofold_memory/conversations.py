"""Conversations as things with a title, labels and a user; what is said in them is `threads`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256

from twofold_chassis.refusals import EtagMismatch
from twofold_memory.threads import Conversation

Answer = Callable[[Conversation], bytes]
"""Writes an answer down, so that a repeat of the call gets the very same bytes."""


@dataclass(frozen=True, slots=True)
class Edit:
    """New values; None leaves a field as it is."""

    title: str | None = None
    metadata: Mapping[str, str] | None = None

    def applied(self, conversation: Conversation) -> Conversation:
        """The conversation with the new values in place."""
        return replace(
            conversation,
            title=conversation.title if self.title is None else self.title,
            metadata=conversation.metadata if self.metadata is None else self.metadata,
        )


@dataclass(frozen=True, slots=True)
class Filter:
    """Which conversations are asked for: of a user, changed within a time, with these labels; None or none: any."""

    user_id: str | None = None
    updated_from: datetime | None = None
    updated_before: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def etag(conversation: Conversation) -> str:
    """The version of title and metadata, bound to the conversation."""
    name = f"{len(conversation.key.workspace_id)}/{conversation.key.workspace_id}/{conversation.key.thread_id}"
    return sha256(f"{name}/{conversation.version}".encode()).hexdigest()[:16]


def expect(conversation: Conversation, given: str) -> None:
    """Refuses if the caller gave an etag and it is not the current one."""
    if given and given != etag(conversation):
        raise EtagMismatch("the conversation was changed by somebody else; read it again, then decide")
