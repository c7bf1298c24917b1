"""What the registry says of limits: on what terms somebody may use what was granted."""

from collections.abc import Sequence

import grpc

from twofold.registry.v1 import terms_pb2, terms_pb2_grpc
from twofold_chassis import peers
from twofold_chassis.refusals import NotFound, Reason
from twofold_chassis.revisions import Revision
from twofold_router import wire_terms as wire
from twofold_router.copies import Told, Unstamped
from twofold_router.knowledge import Thing, plan_thing, user_thing, workspace_thing
from twofold_router.terms import Terms, TermsKey

_PEER = "registry"


class RegistryTerms:
    """Terms, asked of their owner."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = terms_pb2_grpc.TermsServiceStub(channel)
        self._timeout_s = timeout_s

    def rests_on(self, key: TermsKey) -> Sequence[Thing]:
        workspace_id, user_id = key
        return plan_thing(workspace_id), user_thing(workspace_id, user_id), workspace_thing(workspace_id)

    async def ask(self, key: TermsKey, least: Revision | None) -> Told[Terms | None] | Unstamped[Terms | None]:
        token = b"" if least is None else least.token()
        request = terms_pb2.GetTermsRequest(**key._asdict(), min_revision_token=token)
        asked = self._stub.GetTerms(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        try:
            return wire.told(await peers.asked(_PEER, asked))
        except NotFound as refusal:
            if refusal.reason == Reason.REASON_WORKSPACE_UNKNOWN:
                return Unstamped(None)
            raise
