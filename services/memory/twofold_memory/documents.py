"""Documents that conversations have to do with: links to them. They lie elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from twofold_chassis.refusals import Reason, ResourceExhausted

DOCUMENTS_MAX = 100


class TooManyDocuments(ResourceExhausted):
    """No more documents can be linked to this conversation."""

    reason = Reason.REASON_TOO_MANY


@dataclass(frozen=True, slots=True)
class Document:
    """A link. The times are set once it is stored."""

    document_id: str
    title: str
    url: str
    media_type: str
    metadata: Mapping[str, str]
    created_at: datetime | None = None
    updated_at: datetime | None = None


Answer = Callable[[Document], bytes]
"""Writes an answer down, so that a repeat of the call gets the very same bytes."""
