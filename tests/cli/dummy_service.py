"""Stands for a service where only the stack is tested: says SERVING, drains on SIGTERM. Run with NAME in globals."""

import asyncio
import json
import os
import signal
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

NAME: str = globals()["NAME"]
HOST = os.environ.get(f"{NAME.upper()}__HOST", "127.0.0.1")


async def main() -> None:
    seen = {name: value for name, value in os.environ.items() if "__" in name}
    print(json.dumps(seen), flush=True)
    if os.environ.get("DUMMY__FAIL") == NAME:
        sys.exit(f"{NAME} has no heart for it")
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if server.add_insecure_port(f"{HOST}:{os.environ[f'{NAME.upper()}__PORT']}") == 0:
        sys.exit("cannot listen: the port is taken")
    await server.start()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)
    print("drained", flush=True)


asyncio.run(main())
