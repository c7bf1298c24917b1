from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from tests.client.fakes import Context, Turns, Users, server
from twofold import Twofold
from twofold.memory.v1.context_pb2_grpc import add_ContextServiceServicer_to_server
from twofold.registry.v1.user_pb2_grpc import add_UserServiceServicer_to_server
from twofold.router.v1.turn_pb2_grpc import add_TurnServiceServicer_to_server

Connect = Callable[..., Awaitable[Twofold]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Serves the given fakes on one port and returns a client of it."""
    async with AsyncExitStack() as stack:

        async def connected(*fakes: Context | Users | Turns, actor: str = "") -> Twofold:
            running = server()
            for fake in fakes:
                if isinstance(fake, Context):
                    add_ContextServiceServicer_to_server(fake, running)
                elif isinstance(fake, Users):
                    add_UserServiceServicer_to_server(fake, running)
                else:
                    add_TurnServiceServicer_to_server(fake, running)
            target = f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}"
            await running.start()
            stack.push_async_callback(running.stop, 0)
            return await stack.enter_async_context(Twofold(registry=target, memory=target, router=target, actor=actor))

        yield connected
