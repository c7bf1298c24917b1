"""Terms on the wire."""

from twofold.registry.v1 import terms_pb2 as pb
from twofold_chassis import fields
from twofold_registry import months
from twofold_registry.caps import CapState
from twofold_registry.resources import Read
from twofold_registry.terms import Terms
from twofold_registry.wire import limits
from twofold_registry.wire.caps import STATES


def whose(request: pb.GetTermsRequest) -> tuple[str, str | None]:
    """The workspace, and the user if there is one."""
    return fields.identifier(request.workspace_id, "workspace_id"), fields.optional_identifier(request.user_id, "user_id")


def got(read: Read[Terms]) -> pb.GetTermsResponse:
    terms = read.value
    return pb.GetTermsResponse(
        limits=limits.messages(terms.limits),
        cap_state=STATES[terms.cap.state if terms.cap else CapState.NONE],
        cap_month=months.named(terms.cap.month) if terms.cap else "",
        allowed_url_suffixes=terms.allowed_url_suffixes,
        namespace=terms.namespace,
        revision_token=read.revision.token(),
        read_time=fields.timestamp(terms.read_at),
    )
