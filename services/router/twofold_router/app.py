"""The router, put together."""

import contextlib
import time
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry

from twofold.router.v1 import limit_pb2, limit_pb2_grpc, routing_pb2, routing_pb2_grpc
from twofold_chassis import fields
from twofold_chassis.clocks import boot_s
from twofold_chassis.redis import open_link
from twofold_chassis.redis_channels import RedisChannels
from twofold_chassis.server import Face, Running, serving
from twofold_router import channels
from twofold_router.cache import redis_permissions, redis_routes, redis_terms
from twofold_router.copies import Copies, Limiter
from twofold_router.counting import Limits
from twofold_router.eventing import eventing
from twofold_router.explaining import Explainer
from twofold_router.explaining_redis import redis_state
from twofold_router.following import Follower
from twofold_router.knowledge import Knowledge
from twofold_router.limit_service import LimitService
from twofold_router.limits_redis import RedisCounters, RedisFilling, own_clock
from twofold_router.metrics import Metrics
from twofold_router.outcomes import Outcomes
from twofold_router.outcomes_redis import RedisBoard
from twofold_router.rebuilds import Rebuilds
from twofold_router.registry import RegistryAgents, RegistryObservations, RegistryPermissions
from twofold_router.registry_terms import RegistryTerms
from twofold_router.registry_windows import RegistryWindows
from twofold_router.reporting import Reporting
from twofold_router.resolution import Resolver
from twofold_router.routing_service import RoutingService
from twofold_router.sessioning import sessioning
from twofold_router.settings import Settings
from twofold_router.shares import Shares
from twofold_router.standing import Standing
from twofold_router.targets import Targets
from twofold_router.turning import turning

_ROUTING = routing_pb2.DESCRIPTOR.services_by_name["RoutingService"].full_name
_LIMITS = limit_pb2.DESCRIPTOR.services_by_name["LimitService"].full_name

# For how long a check of health waits for the first word: a router that starts beside its registry serves at once.
_FIRST_WORD_S = 0.5


@contextlib.asynccontextmanager
async def router(settings: Settings) -> AsyncIterator[Running]:
    """The router, serving until the block ends. It starts whether or not its peers and Redis are there yet."""
    options = settings.router
    collectors = CollectorRegistry()
    metrics = Metrics(collectors)
    async with contextlib.AsyncExitStack() as stack:
        link = await open_link(settings.redis)
        stack.push_async_callback(link.close)
        redis_channels = RedisChannels(settings.redis)
        stack.push_async_callback(redis_channels.close)
        registry = await stack.enter_async_context(channels.channel(options.registry_target, channels.REGISTRY))
        memory = await stack.enter_async_context(channels.channel(options.memory_target, channels.MEMORY))

        timeout_s = options.peer_timeout_s
        me = {"router_id": fields.new_id(), "incarnation": fields.new_id()}
        knowledge = Knowledge(lease_s=options.lease_ms / 1000)
        limiter = Limiter(options.cold_reads_max)
        permissions = Copies(
            knowledge,
            RegistryPermissions(registry, **me, timeout_s=timeout_s),
            redis_permissions(link),
            limiter,
            count=metrics.copies("permission"),
            copies_max=options.copies_max,
            read_s=timeout_s,
        )
        routes = Copies(
            knowledge,
            RegistryAgents(registry, timeout_s=timeout_s),
            redis_routes(link),
            limiter,
            count=metrics.copies("route"),
            copies_max=options.copies_max,
            read_s=timeout_s,
        )
        terms = Copies(
            knowledge,
            RegistryTerms(registry, timeout_s=timeout_s),
            redis_terms(link),
            limiter,
            count=metrics.copies("terms"),
            copies_max=options.copies_max,
            read_s=timeout_s,
        )
        now_ms = {} if options.redis_time else {"now_ms": own_clock()}
        counters = RedisCounters(link, cells=options.limit_cells, **now_ms)
        rebuilds = Rebuilds(
            RedisFilling(link, counters, cells=options.limit_cells),
            RegistryWindows(registry, timeout_s=timeout_s),
            cells=options.limit_cells,
            wait_s=options.rebuild_wait_ms / 1000,
            database_s=lambda: knowledge.database_s(boot_s()),
            count=metrics.limits.rebuilt,
        )
        limits = Limits(
            counters,
            rebuilds,
            Shares(cells=options.limit_cells, routers=lambda: knowledge.sharing(boot_s()), clock=time.time),
            note=metrics.limits.decided,
            note_share=metrics.limits.share_asked,
        )
        stack.push_async_callback(limits.close)
        stack.push_async_callback(rebuilds.close)
        stack.push_async_callback(terms.close)
        stack.push_async_callback(permissions.close)
        stack.push_async_callback(routes.close)
        follower = Follower(registry, knowledge, **me, ping_s=options.ping_ms / 1000, silence_s=options.silence_ms / 1000)
        await stack.enter_async_context(follower.following())
        outcomes = Outcomes()
        metrics.targets_failing.set_function(lambda: outcomes.failing)
        targets = Targets(outcomes, options.url_policy, database_s=knowledge.database_s)
        reporting = Reporting(
            outcomes,
            targets,
            routes,
            RedisBoard(link),
            RegistryObservations(registry, timeout_s=timeout_s),
            count=metrics.heard,
        )
        await stack.enter_async_context(reporting.spreading())
        resolver = Resolver(knowledge, permissions, routes, terms, targets, limits)
        explainer = Explainer(knowledge, permissions, routes, terms, targets, resolver, redis_state(link))
        held = await stack.enter_async_context(
            sessioning(
                link,
                redis_channels,
                registry,
                resolver,
                knowledge,
                options,
                metrics.sessions,
                router_id=me["router_id"],
            )
        )
        told = await stack.enter_async_context(eventing(link, redis_channels, options, metrics.events))
        turns = await stack.enter_async_context(
            turning(
                registry,
                memory,
                resolver,
                limits,
                reporting,
                told.events,
                options,
                metrics.turns,
                router_id=me["router_id"],
            )
        )
        faces = [
            Face(
                _ROUTING,
                RoutingService(resolver, reporting, explainer),
                routing_pb2_grpc.add_RoutingServiceServicer_to_server,
            ),
            Face(
                _LIMITS,
                LimitService(limits, Standing(knowledge, terms, limits)),
                limit_pb2_grpc.add_LimitServiceServicer_to_server,
            ),
            turns,
            told.face,
            held,
        ]

        async def serves() -> bool:
            # Before the registry's first word nothing may be answered; while that holds it need not be asked. When it holds
            # no longer, each answer is read from the registry: without it nobody is allowed anything. Memory is missed only
            # by turns, which say so themselves.
            await knowledge.until_known(_FIRST_WORD_S)
            return knowledge.is_known and (boot_s() < knowledge.until() or await channels.serves(registry))

        running = await stack.enter_async_context(
            serving(
                options,
                settings.log,
                faces=faces,
                check=serves,
                metrics=collectors,
                serializers=told.serializers,
            )
        )
        yield running
