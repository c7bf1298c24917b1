"""The registry's word of what was used, for counters that were lost."""

import grpc

from twofold.registry.v1 import usage_pb2_grpc
from twofold_chassis import peers
from twofold_chassis.refusals import Overloaded, Reason, ResourceExhausted
from twofold_router import wire_windows as wire
from twofold_router.rebuilds import Span, Window, WindowTooLarge

_PEER = "registry"


class RegistryWindows:
    """Windows, asked of who records all usage. Each may take `timeout_s`."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._stub = usage_pb2_grpc.UsageServiceStub(channel)
        self._timeout_s = timeout_s

    async def read(self, workspace_id: str, span: Span) -> Window:
        request = wire.window_request(workspace_id, span)
        asked = self._stub.ReadWindow(request, timeout=peers.timeout_s(self._timeout_s), metadata=peers.metadata())
        try:
            return wire.window(await peers.asked(_PEER, _all(asked)), span.subject)
        except ResourceExhausted as refusal:
            if refusal.reason == Reason.REASON_TOO_MANY:
                raise WindowTooLarge(refusal.message) from None
            if refusal.reason == Reason.REASON_OVERLOADED:
                raise Overloaded(refusal.message, retry_after_s=refusal.retry_after_s) from None
            raise


async def _all(asked: wire.Parts) -> list[wire.Part]:
    return [part async for part in asked]
