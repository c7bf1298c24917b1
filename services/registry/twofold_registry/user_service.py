"""The gRPC face of users."""

from twofold.registry.v1 import user_pb2 as pb
from twofold.registry.v1.user_pb2_grpc import UserServiceServicer
from twofold_chassis import fields
from twofold_chassis.edge import Context
from twofold_registry.users import Users
from twofold_registry.wire import forms
from twofold_registry.wire import users as wire


class UserService(UserServiceServicer):
    """Reads, asks, answers."""

    def __init__(self, users: Users) -> None:
        self._users = users

    async def CreateUser(self, request: pb.CreateUserRequest, _: Context) -> pb.CreateUserResponse:
        user, write = wire.new_user(request), wire.create_write(request)
        answer = await self._users.create(user, write, wire.written(pb.CreateUserResponse))
        return pb.CreateUserResponse.FromString(answer)

    async def GetUser(self, request: pb.GetUserRequest, _: Context) -> pb.GetUserResponse:
        key, look = wire.user_key(request), forms.look(request)
        return wire.got(await self._users.get(key, look))

    async def BatchGetUsers(self, request: pb.BatchGetUsersRequest, _: Context) -> pb.BatchGetUsersResponse:
        workspace_id = fields.identifier(request.workspace_id, "workspace_id")
        ids, look = forms.ids(request.user_ids, "user_ids"), forms.look(request)
        return wire.batch(ids, await self._users.batch_get(workspace_id, ids, look))

    async def ListUsers(self, request: pb.ListUsersRequest, _: Context) -> pb.ListUsersResponse:
        listing = wire.listing(request)
        return wire.listed(listing, await self._users.list(listing))

    async def UpdateUser(self, request: pb.UpdateUserRequest, _: Context) -> pb.UpdateUserResponse:
        key, write = wire.updated_key(request), wire.update_write(request)
        edit = wire.user_edit(request)
        answer = await self._users.update(key, edit, write, wire.written(pb.UpdateUserResponse))
        return pb.UpdateUserResponse.FromString(answer)

    async def DeleteUser(self, request: pb.DeleteUserRequest, _: Context) -> pb.DeleteUserResponse:
        key, write = wire.user_key(request), wire.write(request)
        answer = await self._users.delete(key, write, wire.written(pb.DeleteUserResponse))
        return pb.DeleteUserResponse.FromString(answer)

    async def UndeleteUser(self, request: pb.UndeleteUserRequest, _: Context) -> pb.UndeleteUserResponse:
        key, write = wire.user_key(request), wire.write(request)
        answer = await self._users.undelete(key, write, wire.written(pb.UndeleteUserResponse))
        return pb.UndeleteUserResponse.FromString(answer)

    async def PurgeUser(self, request: pb.PurgeUserRequest, _: Context) -> pb.PurgeUserResponse:
        key, write = wire.user_key(request), wire.write(request)
        answer = await self._users.purge(key, write, forms.forgotten(pb.PurgeUserResponse))
        return pb.PurgeUserResponse.FromString(answer)
