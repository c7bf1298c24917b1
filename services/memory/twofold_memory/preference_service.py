"""PreferenceService: read, ask, answer."""

from datetime import UTC, datetime

from twofold.memory.v1 import preference_pb2 as pb
from twofold.memory.v1 import preference_pb2_grpc as stubs
from twofold_chassis.edge import Context
from twofold_chassis.requests import attempt
from twofold_memory.preferences import PreferenceRecall
from twofold_memory.store.preferences import PostgresPreferences
from twofold_memory.wire import preferences as wire


class PreferenceService(stubs.PreferenceServiceServicer):
    """Users' preferences."""

    def __init__(self, preferences: PostgresPreferences, recall: PreferenceRecall) -> None:
        self._preferences = preferences
        self._recall = recall

    async def GetPreferences(self, request: pb.GetPreferencesRequest, context: Context) -> pb.GetPreferencesResponse:
        recalled = await self._recall.read(wire.user_key(request.workspace_id, request.user_id))
        return wire.get_response(recalled)

    async def UpdatePreferences(
        self, request: pb.UpdatePreferencesRequest, context: Context
    ) -> pb.UpdatePreferencesResponse:
        user, change = wire.user_key(request.workspace_id, request.user_id), wire.change(request)
        call = attempt(user.workspace_id, "UpdatePreferences", request, request.request_id)
        answer, changed = await self._preferences.change(
            call, user, change, lambda now: wire.update_response(now).SerializeToString()
        )
        if changed is not None:
            await self._recall.changed(user, changed)
        return wire.repeated(answer, datetime.now(UTC))
