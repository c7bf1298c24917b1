"""The router's events alone, served for a test, and subscribers that judge everything they are told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from tests.waiting import until
from twofold.errors.v1.reason_pb2 import Reason
from twofold.router.v1 import event_pb2, event_pb2_grpc
from twofold_chassis.redis import RedisLink
from twofold_chassis.redis_channels import RedisChannels
from twofold_chassis.server import serving
from twofold_chassis.settings import LogSettings, RedisSettings
from twofold_router.eventing import eventing
from twofold_router.metrics import EventMetrics
from twofold_router.settings import RouterSettings

METADATA = (("twofold-actor", "tester"),)
Place = tuple[str, int]


class Router:
    """What a caller does with one router's events."""

    def __init__(self, port: int, channel: grpc.aio.Channel, collectors: CollectorRegistry, redis: RedisChannels) -> None:
        self.port = port
        self._events = event_pb2_grpc.EventServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        self._collectors = collectors
        self.redis = redis

    async def publish(
        self, workspace_id: str, agent_id: str, *payloads: str, request_id: str = ""
    ) -> event_pb2.PublishResponse:
        events = [event_pb2.AgentEvent(type="said", payload=payload.encode()) for payload in payloads]
        return await self.publish_events(workspace_id, agent_id, events, request_id)

    async def publish_events(
        self, workspace_id: str, agent_id: str, events: Sequence[event_pb2.AgentEvent], request_id: str = ""
    ) -> event_pb2.PublishResponse:
        request = event_pb2.PublishRequest(
            workspace_id=workspace_id, agent_id=agent_id, events=events, request_id=request_id
        )
        return await self._events.Publish(request, metadata=METADATA, timeout=30)

    async def list(
        self, workspace_id: str, agent_id: str, after: Place | None = None, page_size: int = 0
    ) -> event_pb2.ListEventsResponse:
        request = event_pb2.ListEventsRequest(
            workspace_id=workspace_id,
            agent_id=agent_id,
            log_epoch=after[0] if after else "",
            after_offset=after[1] if after else 0,
            page_size=page_size,
        )
        return await self._events.ListEvents(request, metadata=METADATA, timeout=30)

    @contextlib.asynccontextmanager
    async def subscribed(
        self, workspace_id: str, *agents: event_pb2.SubscribeAgent, credit: int = 0, until_caught_up: bool = False
    ) -> AsyncIterator["Subscriber"]:
        """A subscriber that reads, and judges, all the time."""
        opening = event_pb2.SubscribeOpen(
            workspace_id=workspace_id, agents=agents, credits=credit, until_caught_up=until_caught_up
        )
        subscriber = Subscriber(self.stream())
        await subscriber.say(open=opening)
        task = asyncio.create_task(subscriber.read())
        try:
            yield subscriber
        finally:
            subscriber.call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def stream(self) -> Any:
        return self._events.Subscribe(metadata=METADATA, timeout=100)

    async def serves(self) -> bool:
        """What its own entry of health says."""
        request = health_pb2.HealthCheckRequest(service="twofold.router.v1.EventService")
        check = self._health.Check  # type: ignore[attr-defined]  # its types know no methods
        return bool((await check(request)).status == health_pb2.HealthCheckResponse.SERVING)

    def count(self, name: str, **labels: str) -> float:
        return self._collectors.get_sample_value(f"twofold_router_{name}", labels) or 0.0

    def ended(self, code: str) -> float:
        """How many subscriptions have ended like this."""
        names = {"grpc_type": "bidi_stream", "grpc_service": "twofold.router.v1.EventService", "grpc_method": "Subscribe"}
        return self._collectors.get_sample_value("grpc_server_handled_total", names | {"grpc_code": code}) or 0.0


class Subscriber:
    """Everything it is told must follow from what it was told before: that is what C11 says."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.places: dict[str, Place] = {}
        self.payloads: dict[str, list[str]] = {}
        self.gaps: list[tuple[str, int, int]] = []
        self.resets: list[str] = []
        self.caught_up: list[str] = []
        self.refused: dict[str, event_pb2.EventRefused] = {}
        self.removed: list[str] = []
        self.heartbeats: list[str] = []
        self.events = 0
        self.responses = 0
        self.error: grpc.aio.AioRpcError | None = None
        self.has_ended = False

    async def say(self, **wish: Any) -> None:
        await self.call.write(said(**wish))

    async def read(self) -> None:
        try:
            async for response in self.call:
                self.judge(response)
        except grpc.aio.AioRpcError as error:
            self.error = error
        self.has_ended = True

    def judge(self, response: event_pb2.SubscribeResponse) -> None:
        self.responses += 1
        kind = response.WhichOneof("told")
        told: Any = getattr(response, kind or "heartbeat")
        if kind == "heartbeat":
            self.heartbeats.append(event_pb2.EventDelivery.Name(told.delivery).removeprefix("EVENT_DELIVERY_"))
            return
        agent = told.agent_id
        if kind == "subscribed":
            self.places[agent] = (told.place.log_epoch, told.place.offset)
            self.payloads.setdefault(agent, [])
        elif kind == "refused":
            self.refused[agent] = told
            assert told.reason == Reason.REASON_OFFSET_OUT_OF_RANGE
        elif kind == "removed":
            self.removed.append(agent)
            del self.places[agent]
        else:
            self._judge_of(kind, agent, told)

    def _judge_of(self, kind: str | None, agent: str, told: Any) -> None:
        epoch, offset = self.places[agent]
        if kind == "events":
            assert told.log_epoch == epoch
            for event in told.events:
                offset += 1
                assert event.offset == offset, f"{agent}: {event.offset} is told behind {offset - 1}"
                self.payloads[agent].append(event.payload.decode())
                self.events += 1
            assert told.events
            self.places[agent] = epoch, offset
        elif kind == "gap":
            assert (told.log_epoch, told.first_offset) == (epoch, offset + 1)
            assert told.last_offset >= told.first_offset
            self.gaps.append((agent, told.first_offset, told.last_offset))
            self.places[agent] = epoch, told.last_offset
        elif kind == "reset":
            assert told.log_epoch != epoch
            self.resets.append(agent)
            self.places[agent] = told.log_epoch, 0
        else:
            assert kind == "caught_up"
            assert (told.place.log_epoch, told.place.offset) == (epoch, offset)
            self.caught_up.append(agent)

    async def told(self, agent: str, *payloads: str) -> None:
        """Returns when it was told exactly these of the agent."""
        await until(lambda: len(self.payloads.get(agent, ())) >= len(payloads), f"{agent}: {payloads} are told")
        assert self.payloads[agent] == [*payloads]

    async def is_so(self, holds: Callable[["Subscriber"], bool], what: str) -> None:
        await until(lambda: self.has_ended or holds(self), what)
        assert holds(self), (what, self.error)


def of(agent_id: str, after: Place | None = None, *, oldest: bool = False) -> event_pb2.SubscribeAgent:
    """An agent, and from where."""
    if oldest:
        return event_pb2.SubscribeAgent(agent_id=agent_id, oldest=True)
    return event_pb2.SubscribeAgent(agent_id=agent_id, after=place(after))


def said(**wish: Any) -> event_pb2.SubscribeRequest:
    """What a subscriber says, as dictionaries."""
    return event_pb2.SubscribeRequest(**wish)


def outcome_of(error: grpc.aio.AioRpcError) -> str:
    """What a refusal says of what was to be written."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads what an aio error has as well
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return str(info.metadata["outcome"])


def place(at: Place | None) -> event_pb2.EventPlace | None:
    return None if at is None else event_pb2.EventPlace(log_epoch=at[0], offset=at[1])


@contextlib.asynccontextmanager
async def events_router(
    redis: RedisSettings, channels: RedisSettings | None = None, **options: Any
) -> AsyncIterator[Router]:
    """A router's events, with settings of a test's own. `channels`: another way to Redis for what listens."""
    settings = RouterSettings(**{"port": 0, "drain_s": 0.2, "listeners": 1} | options)
    link, listening = RedisLink(redis), RedisChannels(channels or redis)
    collectors = CollectorRegistry()

    async def well() -> bool:
        return True

    try:
        async with eventing(link, listening, settings, EventMetrics(collectors)) as told:
            served = serving(
                settings,
                LogSettings(level="error"),
                faces=[told.face],
                check=well,
                metrics=collectors,
                serializers=told.serializers,
            )
            async with served as running, grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
                yield Router(running.port, channel, collectors, listening)
    finally:
        await listening.close()
        await link.close()
