"""Channels to the peers: one each, which finds a peer that comes up late or comes back."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_ANSWER_BYTES_MAX = 16 * 1024 * 1024
_HEALTH_S = 1.0

_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),  # the servers allow a ping every 10 s
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),  # whether a call may be repeated is known by who makes it
    ("grpc.enable_http_proxy", 0),  # a proxy in the environment is not meant for us
    ("grpc.max_receive_message_length", _ANSWER_BYTES_MAX),
    ("grpc.max_send_message_length", _ANSWER_BYTES_MAX),
    # A peer that was restarted is found again within two seconds, not within two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


def channel(target: str) -> grpc.aio.Channel:
    """A channel to `target`; nothing is dialled yet."""
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


async def serves(peer: grpc.aio.Channel) -> bool:
    """Whether the peer says that it serves."""
    try:
        check = health_pb2_grpc.HealthStub(peer).Check  # type: ignore[attr-defined]  # its types know no methods
        answer = await check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_S)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
