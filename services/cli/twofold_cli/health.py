"""Asks a service how it is, as a container's health check does."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT_S = 3.0


async def health(target: str, service: str) -> tuple[bool, str]:
    """Whether it serves, and one sentence for a person. An empty `service` asks for all of the server's together."""
    async with grpc.aio.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            # The stub's calls are attributes made at run time, which its types do not know.
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=_TIMEOUT_S)  # type: ignore[attr-defined]
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False, f"{target} has no service {service}"
            return False, f"{target} does not answer ({error.code().name})"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return answer.status == health_pb2.HealthCheckResponse.SERVING, f"{target} {service}".strip() + f": {status}"
