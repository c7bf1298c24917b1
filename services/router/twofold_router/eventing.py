"""Events, put together: what the app serves of them, and what others publish through."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from operator import methodcaller
from typing import NamedTuple

from twofold.router.v1 import event_pb2, event_pb2_grpc
from twofold_chassis.edge import Serializer
from twofold_chassis.redis import RedisLink
from twofold_chassis.redis_channels import RedisChannels
from twofold_chassis.server import Face
from twofold_router.event_service import EventService
from twofold_router.event_streams import EventStreams
from twofold_router.event_tails import Tails
from twofold_router.events import Events
from twofold_router.events_redis import Probe, RedisLogs, RedisNudges
from twofold_router.metrics import EventMetrics
from twofold_router.settings import RouterSettings

_EVENTS = event_pb2.DESCRIPTOR.services_by_name["EventService"].full_name


class Eventing(NamedTuple):
    """What there is of events."""

    events: Events
    face: Face
    # Events are put together from stored bytes instead of message objects.
    serializers: Mapping[str, Serializer]


@contextlib.asynccontextmanager
async def eventing(
    link: RedisLink, channels: RedisChannels, options: RouterSettings, metrics: EventMetrics
) -> AsyncIterator[Eventing]:
    """Follows logs and probes channels until the block ends. Nothing of it needs Redis to be there."""
    logs = RedisLogs(
        link,
        ttl_s=options.event_log_ttl_s,
        entries_max=options.event_log_entries_max,
        bytes_max=options.event_log_bytes_max,
    )
    events = Events(logs, published=metrics.published)
    tails = Tails(logs, RedisNudges(channels), poll_s=options.event_poll_ms / 1000)
    streams = EventStreams(tails, metrics, streams_max=options.event_subscribers_max, heartbeat_s=options.event_heartbeat_s)
    probe = Probe(link, channels, period_s=options.event_probe_ms / 1000, told=streams.heard, count=metrics.probed)
    metrics.subscribers.set_function(lambda: len(streams))
    metrics.followed.set_function(lambda: len(tails))
    metrics.deaf.set_function(lambda: not probe.hears)
    face = Face(
        _EVENTS,
        EventService(events, streams),
        event_pb2_grpc.add_EventServiceServicer_to_server,
        well=lambda: probe.hears,
    )
    async with tails.looking(), probe.probing():
        yield Eventing(events, face, {f"/{_EVENTS}/Subscribe": methodcaller("SerializeToString")})
