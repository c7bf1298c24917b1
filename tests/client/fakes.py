"""Servers that stand in for the services: they refuse what a test tells them to, and note what they were asked."""

from collections.abc import Sequence
from typing import Any

import grpc

from twofold.memory.v1 import context_pb2, context_pb2_grpc
from twofold.memory.v1.message_pb2 import Durability
from twofold.registry.v1 import user_pb2, user_pb2_grpc
from twofold.router.v1 import turn_pb2, turn_pb2_grpc
from twofold_chassis import status
from twofold_chassis.refusals import Refusal


class Scripted:
    """Refuses its next calls in the order of `refusals`, then answers. `metadata` is that of the newest call."""

    def __init__(self, refusals: Sequence[Refusal] = ()) -> None:
        self.refusals = list(refusals)
        self.requests: list[Any] = []
        self.metadata: dict[str, Any] = {}

    async def noted(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata() or ())
        if self.refusals:
            refusal = self.refusals.pop(0)
            await context.abort(status.code(refusal), refusal.message, status.trailers(refusal))


class Context(Scripted, context_pb2_grpc.ContextServiceServicer):
    """Hands out the tokens t1, t2, …"""

    durability = Durability.DURABILITY_COMMITTED

    async def Invoking(self, request: context_pb2.InvokingRequest, context: Any) -> context_pb2.InvokingResponse:
        await self.noted(request, context)
        return context_pb2.InvokingResponse(text="remembered", thread_token=self._token())

    async def Invoked(self, request: context_pb2.InvokedRequest, context: Any) -> context_pb2.InvokedResponse:
        await self.noted(request, context)
        return context_pb2.InvokedResponse(
            turn_id=request.request_id, thread_token=self._token(), durability=self.durability
        )

    def _token(self) -> bytes:
        return f"t{len(self.requests)}".encode()


class Users(Scripted, user_pb2_grpc.UserServiceServicer):
    """Knows every user."""

    async def CreateUser(self, request: user_pb2.CreateUserRequest, context: Any) -> user_pb2.CreateUserResponse:
        await self.noted(request, context)
        return user_pb2.CreateUserResponse(user=request.user)

    async def GetUser(self, request: user_pb2.GetUserRequest, context: Any) -> user_pb2.GetUserResponse:
        await self.noted(request, context)
        return user_pb2.GetUserResponse()

    async def BatchGetUsers(self, request: user_pb2.BatchGetUsersRequest, context: Any) -> user_pb2.BatchGetUsersResponse:
        await self.noted(request, context)
        return user_pb2.BatchGetUsersResponse()

    async def ListUsers(self, request: user_pb2.ListUsersRequest, context: Any) -> user_pb2.ListUsersResponse:
        await self.noted(request, context)
        return user_pb2.ListUsersResponse()

    async def UpdateUser(self, request: user_pb2.UpdateUserRequest, context: Any) -> user_pb2.UpdateUserResponse:
        await self.noted(request, context)
        return user_pb2.UpdateUserResponse(user=request.user)

    async def DeleteUser(self, request: user_pb2.DeleteUserRequest, context: Any) -> user_pb2.DeleteUserResponse:
        await self.noted(request, context)
        return user_pb2.DeleteUserResponse()

    async def UndeleteUser(self, request: user_pb2.UndeleteUserRequest, context: Any) -> user_pb2.UndeleteUserResponse:
        await self.noted(request, context)
        return user_pb2.UndeleteUserResponse()

    async def PurgeUser(self, request: user_pb2.PurgeUserRequest, context: Any) -> user_pb2.PurgeUserResponse:
        await self.noted(request, context)
        return user_pb2.PurgeUserResponse()


class Turns(Scripted, turn_pb2_grpc.TurnServiceServicer):
    """Completes at once."""

    async def Run(self, request: turn_pb2.RunRequest, context: Any) -> Any:
        await self.noted(request, context)
        yield turn_pb2.RunResponse(completed=turn_pb2.Completed(finish_reason="stop"))


def server() -> grpc.aio.Server:
    """A server without any service."""
    return grpc.aio.server(options=[("grpc.so_reuseport", 0)])
