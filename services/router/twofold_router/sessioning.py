"""Sessions and pods, put together: what the app serves of them."""

import contextlib
from collections.abc import AsyncIterator

import grpc

from twofold.router.v1 import session_pb2, session_pb2_grpc
from twofold_chassis.alongside import alongside
from twofold_chassis.redis import RedisLink
from twofold_chassis.redis_channels import RedisChannels
from twofold_chassis.server import Face
from twofold_router.knowledge import Knowledge
from twofold_router.links import Bounds, Links
from twofold_router.metrics import SessionMetrics
from twofold_router.pods import Sweeper
from twofold_router.registry_pods import RegistryHistory, RegistryPods
from twofold_router.resolution import Resolver
from twofold_router.session_commands import PodCommands
from twofold_router.session_history import History
from twofold_router.session_service import SessionService
from twofold_router.session_table import RedisLeases, RedisTable
from twofold_router.sessions import CloseReason, Session, Sessions
from twofold_router.settings import RouterSettings

_SESSIONS = session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name


@contextlib.asynccontextmanager
async def sessioning(
    link: RedisLink,
    channels: RedisChannels,
    registry: grpc.aio.Channel,
    resolver: Resolver,
    knowledge: Knowledge,
    options: RouterSettings,
    metrics: SessionMetrics,
    *,
    router_id: str,
) -> AsyncIterator[Face]:
    """Tends links of pods until the block ends. Nothing of it needs Redis to be there."""
    lease_s = options.pod_lease_ms / 1000
    leases, table = RedisLeases(link, router_id=router_id, lease_s=lease_s), RedisTable(link, lease_s=lease_s)
    pods = RegistryPods(registry, timeout_s=options.peer_timeout_s)
    history = History(RegistryHistory(registry, timeout_s=options.peer_timeout_s), metrics.history_dropped)

    def closed(session: Session, reason: CloseReason) -> None:
        metrics.session_closed(reason)
        history.closed(session, reason)

    bounds = Bounds(
        lease_s=lease_s,
        heartbeat_s=options.pod_heartbeat_ms / 1000,
        links_max=options.pod_links_max,
        per_pod_max=options.pod_sessions_max,
        per_user_max=options.user_sessions_max,
        queue_bytes_max=options.pod_queue_bytes_max,
    )
    links = Links(
        resolver,
        leases,
        table,
        pods,
        opened=history.opened,
        closed=closed,
        counts=metrics,
        bounds=bounds,
        router_id=router_id,
    )
    commands = PodCommands(links, link, channels, router_id=router_id)
    sessions = Sessions(table, leases, commands, closed=closed, router_id=router_id)
    sweeper = Sweeper(leases, table, pods, closed, metrics.pod_died)
    knowledge.listeners.append(links.revocations.changed)
    async with history.telling(), commands.listening(), alongside(links.run(sweeper)):
        yield Face(_SESSIONS, SessionService(sessions, links), session_pb2_grpc.add_SessionServiceServicer_to_server)
        await links.settle()
    knowledge.listeners.remove(links.revocations.changed)
