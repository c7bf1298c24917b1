"""How a channel to a service is opened: what is retried, how a dead peer is noticed, what is sent along."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from twofold.ids import new_id

ACTOR_KEY = "twofold-actor"

_MESSAGE_BYTES_MAX = 4 * 1024 * 1024

# UNAVAILABLE alone is tried again; what else may be is decided by the caller, who knows the reason.
_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def service_config(services: Sequence[str], *, once: Sequence[tuple[str, str]] = ()) -> str:
    """gRPC's service config for one channel: UNAVAILABLE is retried on all `services`, except on the methods in `once`."""
    retried: dict[str, Any] = {"name": [{"service": service} for service in services], "retryPolicy": _RETRY}
    never: dict[str, Any] = {"name": [{"service": service, "method": method} for service, method in once]}
    return json.dumps({"methodConfig": [retried, never] if once else [retried]})


def options(config: str) -> list[tuple[str, str | int]]:
    """Channel options; the servers' side of them is in the services' own."""
    return [
        ("grpc.service_config", config),
        ("grpc.enable_retries", 1),
        # By default a call that has sent more than 256 KiB is not retried any more.
        ("grpc.per_rpc_retry_buffer_size", _MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),  # the default of 2 minutes keeps a caller out long after a restart
    ]


def interceptors(actor: str) -> list[grpc.aio.ClientInterceptor]:
    """What every call passes on its way out."""
    return [_Unary(actor), _Stream(actor)]


class _Outgoing:
    """Adds the actor, and a request id to a write that has none."""

    def __init__(self, actor: str) -> None:
        self._actor = actor

    def _details(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        if not self._actor or any(key == ACTOR_KEY for key, _ in details.metadata or ()):
            return details
        metadata = grpc.aio.Metadata(*(details.metadata or ()), (ACTOR_KEY, self._actor))
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _Unary(_Outgoing, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(self._details(client_call_details), _repeatable(request))


class _Stream(_Outgoing, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(self._details(client_call_details), request)


def _repeatable(request: Any) -> Any:
    """The request, with a request id if it can have one: without, a retry by the channel could write twice."""
    if "request_id" not in request.DESCRIPTOR.fields_by_name or request.request_id:
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    copy.request_id = new_id()
    return copy
