"""The gRPC face of users."""

from twofold.registry.v1 import user_pb2 as pb
from twofold.registry.v1.user_pb2_grpc import UserServiceServicer
from twofold_chassis.edge import Context
from twofold_registry.users import Users
from twofold_registry.wire import forms
from twofold_registry.wire import users as wire


class UserService(UserServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, users: Users) -> None:
        self._users = users

    async def CreateUser(self, request: pb.CreateUserRequest, _: Context) -> pb.CreateUserResponse:
        user = wire.new_user(request)
        answer = await self._users.create(user, wire.create_attempt(request), wire.created)
        return pb.CreateUserResponse.FromString(answer)

    async def GetUser(self, request: pb.GetUserRequest, _: Context) -> pb.GetUserResponse:
        key = wire.user_key(request)
        return wire.got(await self._users.get(key))

    async def ListUsers(self, request: pb.ListUsersRequest, _: Context) -> pb.ListUsersResponse:
        workspace_id, after, size = wire.list_place(request)
        return wire.listed(workspace_id, await self._users.list(workspace_id, after, size))

    async def UpdateUser(self, request: pb.UpdateUserRequest, _: Context) -> pb.UpdateUserResponse:
        key = wire.updated_key(request)
        edit = wire.user_edit(request)
        etag = forms.etag(request.user.etag, "user.etag")
        answer = await self._users.update(key, edit, etag, wire.update_attempt(request), wire.updated)
        return pb.UpdateUserResponse.FromString(answer)

    async def DeleteUser(self, request: pb.DeleteUserRequest, _: Context) -> pb.DeleteUserResponse:
        key = wire.user_key(request)
        etag = forms.etag(request.etag, "etag")
        answer = await self._users.delete(key, etag, wire.delete_attempt(request), wire.deleted)
        return pb.DeleteUserResponse.FromString(answer)
