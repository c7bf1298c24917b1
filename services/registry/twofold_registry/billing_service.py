"""The gRPC face of billing."""

from twofold.registry.v1 import billing_pb2 as pb
from twofold.registry.v1.billing_pb2_grpc import BillingServiceServicer
from twofold_chassis.edge import Context
from twofold_registry.billing import Billing
from twofold_registry.caps import UsageCaps
from twofold_registry.revisions import revision_of
from twofold_registry.wire import billing as wire
from twofold_registry.wire import caps as caps_wire
from twofold_registry.wire import forms


class BillingService(BillingServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, billing: Billing, caps: UsageCaps) -> None:
        self._billing = billing
        self._caps = caps

    async def GetBill(self, request: pb.GetBillRequest, _: Context) -> pb.GetBillResponse:
        workspace_id = wire.workspace_id(request)
        month, behind, size = wire.bill_place(request)
        least = revision_of(request.min_revision_token, "min_revision_token")
        return wire.billed(request, await self._billing.bill(workspace_id, month, behind, size, least))

    async def CloseMonth(self, request: pb.CloseMonthRequest, _: Context) -> pb.CloseMonthResponse:
        key = wire.bill_key(request)
        answer = await self._billing.close(key, wire.close_attempt(request), wire.closed)
        return pb.CloseMonthResponse.FromString(answer)

    async def GetInvoice(self, request: pb.GetInvoiceRequest, _: Context) -> pb.GetInvoiceResponse:
        key = wire.bill_key(request)
        behind, size = wire.line_place(request)
        least = revision_of(request.min_revision_token, "min_revision_token")
        return wire.invoiced(request, await self._billing.invoice(key, behind and behind.place, size, least))

    async def ListInvoices(self, request: pb.ListInvoicesRequest, _: Context) -> pb.ListInvoicesResponse:
        workspace_id = wire.workspace_id(request)
        before, size = wire.invoices_place(request)
        least = revision_of(request.min_revision_token, "min_revision_token")
        return wire.listed(request, await self._billing.invoices(workspace_id, before, size, least))

    async def CreateAdjustment(self, request: pb.CreateAdjustmentRequest, _: Context) -> pb.CreateAdjustmentResponse:
        draft = wire.draft(request)
        answer = await self._billing.adjust(draft, wire.adjust_attempt(request), wire.adjusted)
        return pb.CreateAdjustmentResponse.FromString(answer)

    async def GetCaps(self, request: pb.GetCapsRequest, _: Context) -> pb.GetCapsResponse:
        workspace_id = wire.workspace_id(request)
        least = revision_of(request.min_revision_token, "min_revision_token")
        return caps_wire.got(await self._caps.get(workspace_id, least))

    async def SetCaps(self, request: pb.SetCapsRequest, _: Context) -> pb.SetCapsResponse:
        caps = caps_wire.new_caps(request)
        etag = forms.etag(request.caps.etag, "caps.etag")
        answer = await self._caps.set(caps, etag, caps_wire.set_attempt(request), caps_wire.were_set)
        return pb.SetCapsResponse.FromString(answer)
