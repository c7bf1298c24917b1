"""Who publishes events, and who listens to them: all the time, slowly, or again and again from where they were."""

import asyncio
import random
import uuid
from collections.abc import Sequence
from contextlib import suppress

import grpc

from benchmarks.chaos.control.eventing import Eventing, Place, Published, Subscriber, Told
from twofold.router.v1 import event_pb2
from twofold.router.v1.event_pb2_grpc import EventServiceStub
from twofold_chassis.clocks import boot_s

AGENTS = ("loud", "quiet")
_CALL_S = 2.0
_ATTEMPTS = 10
_AGAIN_S = 0.1
_BATCHES = {"loud": 150, "quiet": 2}
_THINKING_S = (0.02, 0.2)
# For how long a stream is kept, and for how long its listener hears nothing before a batch is taken.
_STREAM_S = (0.5, 6.0)
_SLOW_S = 2.5
_CREDITS = 60
_LAST_S = 40.0


class Publisher:
    """One who publishes, at any router, and repeats what was not acknowledged."""

    def __init__(
        self, routers: Sequence[grpc.aio.Channel], eventing: Eventing, chance: random.Random, workspace: str
    ) -> None:
        self._stubs = [EventServiceStub(channel) for channel in routers]
        self._eventing = eventing
        self._chance = chance
        self._workspace = workspace

    async def run(self, enough: asyncio.Event) -> None:
        """Publishes until it is enough."""
        while not enough.is_set():
            agent = self._chance.choice(AGENTS)
            await self.publish(agent, self._chance.randint(1, _BATCHES[agent]))
            await asyncio.sleep(self._chance.uniform(*_THINKING_S))

    async def publish(self, agent: str, count: int) -> Published | None:
        """A batch; None if nobody knows whether it was published."""
        names = tuple(str(uuid.UUID(int=self._chance.getrandbits(128))) for _ in range(count))
        events = [event_pb2.AgentEvent(type="chaos", payload=name.encode()) for name in names]
        request = event_pb2.PublishRequest(workspace_id=self._workspace, agent_id=agent, events=events, request_id=names[0])
        for _ in range(_ATTEMPTS):
            with suppress(grpc.aio.AioRpcError):
                answer = await self._chance.choice(self._stubs).Publish(request, timeout=_CALL_S)
                done = Published(agent, answer.log_epoch, answer.first_offset, names)
                self._eventing.published.append(done)
                return done
            await asyncio.sleep(_AGAIN_S)
        return None


class Listener:
    """One who listens at one router; `slow` ones take what they are told late, with few credits."""

    def __init__(
        self,
        router: int,
        channel: grpc.aio.Channel,
        eventing: Eventing,
        chance: random.Random,
        workspace: str,
        *,
        slow: bool = False,
    ) -> None:
        self.heard = Subscriber(router)
        eventing.subscribers.append(self.heard)
        self._stub = EventServiceStub(channel)
        self._chance = chance
        self._workspace = workspace
        self._slow = slow
        self._places: dict[str, Place] = {}
        self._names: set[str] = set()
        self._again = asyncio.Event()

    async def run(self, enough: asyncio.Event) -> None:
        """Listens until it is enough; `hurry` makes it listen without a pause from then on."""
        while not enough.is_set():
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                async with asyncio.timeout(self._chance.uniform(*_STREAM_S)):
                    await self._listen(enough)
            await asyncio.sleep(0 if enough.is_set() else _AGAIN_S)

    def hurry(self) -> None:
        """From now on it takes what it is told at once."""
        self._slow = False

    def has(self, published: Published) -> bool:
        """Whether it was told of the last event of this batch, or stands behind it."""
        place = self._places.get(published.agent)
        last = published.first + len(published.names) - 1
        return place is not None and place.epoch == published.epoch and place.offset >= last

    async def _listen(self, enough: asyncio.Event) -> None:
        slow, asked = self._slow, dict(self._places)
        call = self._stub.Subscribe()
        try:
            await call.write(event_pb2.SubscribeRequest(open=self._opening(asked, slow=slow)))
            while isinstance(response := await call.read(), event_pb2.SubscribeResponse) and not enough.is_set():
                self._take(response, asked)
                if slow and response.HasField("events"):
                    await asyncio.sleep(self._chance.uniform(0, _SLOW_S))
                    more = event_pb2.SubscribeCredit(events=len(response.events.events))
                    await call.write(event_pb2.SubscribeRequest(credit=more))
        finally:
            call.cancel()

    def _opening(self, asked: dict[str, Place], *, slow: bool) -> event_pb2.SubscribeOpen:
        opening = event_pb2.SubscribeOpen(workspace_id=self._workspace, credits=_CREDITS if slow else 0)
        for agent in AGENTS:
            wanted = opening.agents.add(agent_id=agent)
            if agent in asked:
                wanted.after.log_epoch, wanted.after.offset = asked[agent]
            else:
                wanted.oldest = True
        return opening

    def _take(self, response: event_pb2.SubscribeResponse, asked: dict[str, Place]) -> None:
        for told in _told(response, asked):
            self.heard.told.append(told)
            self.heard.at = boot_s()
            if told.kind == "refused":
                self._places.pop(told.agent, None)
            elif told.kind == "reset":
                self._places[told.agent] = Place(told.epoch, 0)
            else:
                self._places[told.agent] = Place(told.epoch, told.offset)


async def hear_the_last(publisher: Publisher, listeners: Sequence[Listener], eventing: Eventing) -> None:
    """Publishes once more, and waits until everybody has been told."""
    for listener in listeners:
        listener.hurry()
    last = [published for agent in AGENTS if (published := await publisher.publish(agent, 1)) is not None]
    until = boot_s() + _LAST_S
    while waiting := [one for one in listeners if not all(one.has(published) for published in last)]:
        if boot_s() > until:
            eventing.deaf += [(one.heard.router, f"not told within {_LAST_S:g} s, all being well") for one in waiting]
            break
        await asyncio.sleep(_AGAIN_S)


def _told(response: event_pb2.SubscribeResponse, asked: dict[str, Place]) -> list[Told]:
    match response.WhichOneof("told"):
        case "subscribed":
            place = response.subscribed.place
            agent = response.subscribed.agent_id
            return [Told("subscribed", agent, place.log_epoch, place.offset, after=asked.get(agent))]
        case "events":
            batch = response.events
            return [
                Told("event", batch.agent_id, batch.log_epoch, event.offset, name=event.payload.decode())
                for event in batch.events
            ]
        case "gap":
            gap = response.gap
            return [Told("gap", gap.agent_id, gap.log_epoch, gap.last_offset, gap.first_offset)]
        case "reset":
            return [Told("reset", response.reset.agent_id, response.reset.log_epoch)]
        case "refused":
            return [Told("refused", response.refused.agent_id)]
        case _:
            return []
