"""The baseline: a bare grpc.aio server with one unary method, whose answer has the size that the request asks for.

python -m benchmarks.echo        prints its port, serves until SIGTERM
"""

import asyncio
import signal

import grpc

METHOD = "/twofold.benchmarks.Echo/Echo"
_SIZE_BYTES = 4


def request(size: int, answer_size: int) -> bytes:
    """A request of `size` bytes (at least 4) that asks for `answer_size` bytes."""
    return answer_size.to_bytes(_SIZE_BYTES, "big") + bytes(max(0, size - _SIZE_BYTES))


async def _echo(body: bytes, _: object) -> bytes:
    return bytes(int.from_bytes(body[:_SIZE_BYTES], "big"))


async def serve() -> None:
    """Serves on a free port of loopback."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_echo)
    service, name = METHOD.lstrip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await stop.wait()
    await server.stop(1)


if __name__ == "__main__":
    asyncio.run(serve())
