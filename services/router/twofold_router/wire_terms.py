"""Proto ↔ domain for terms. Pure."""

from twofold.registry.v1 import billing_pb2, terms_pb2, workspace_pb2
from twofold_chassis.revisions import revision_of
from twofold_chassis.urls import Home
from twofold_router.copies import Told
from twofold_router.knowledge import Stamp
from twofold_router.terms import Limit, LimitKind, Terms

KINDS = {workspace_pb2.LimitKind.Value(f"LIMIT_KIND_{kind.name}"): kind for kind in LimitKind}


def told(response: terms_pb2.GetTermsResponse) -> Told[Terms | None]:
    """On what terms a user may use what was granted. A kind of limit that is not known here cannot be kept to."""
    revision = revision_of(response.revision_token, "revision_token")
    assert revision is not None, "the registry says at which revision it was asked"
    terms = Terms(
        limits=tuple(
            Limit(KINDS[limit.kind], limit.amount, limit.shadow) for limit in response.limits if limit.kind in KINDS
        ),
        capped_month=response.cap_month if response.cap_state == billing_pb2.CAP_STATE_HARD else "",
        home=Home(tuple(response.allowed_url_suffixes), response.namespace),
    )
    read_s = response.read_time.ToNanoseconds() / 1e9
    return Told(terms, Stamp(revision.epoch, revision.number), is_no=False, read_s=read_s)
