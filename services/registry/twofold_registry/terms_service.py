"""The gRPC face of terms."""

from twofold.registry.v1 import terms_pb2 as pb
from twofold.registry.v1.terms_pb2_grpc import TermsServiceServicer
from twofold_chassis.edge import Context
from twofold_registry.terms import AllTerms
from twofold_registry.wire import forms
from twofold_registry.wire import terms as wire


class TermsService(TermsServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, terms: AllTerms) -> None:
        self._terms = terms

    async def GetTerms(self, request: pb.GetTermsRequest, _: Context) -> pb.GetTermsResponse:
        workspace_id, user_id = wire.whose(request)
        return wire.got(await self._terms.get(workspace_id, user_id, forms.least(request)))
