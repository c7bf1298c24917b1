"""Turns, put together: what the app serves of them, where they are kept, and what delivers their usage."""

import contextlib
from collections.abc import AsyncIterator

import grpc

from twofold.router.v1 import turn_pb2, turn_pb2_grpc
from twofold_chassis.server import Face
from twofold_router.accounts import Accounts
from twofold_router.agents_http import HttpAgents, http_session
from twofold_router.counting import Limits
from twofold_router.courses import Courses
from twofold_router.events import Publisher
from twofold_router.memory import MemoryConversations
from twofold_router.metrics import TurnMetrics
from twofold_router.owing import Owing
from twofold_router.registry import RegistryLedger
from twofold_router.reporting import Reporting
from twofold_router.resolution import Resolver
from twofold_router.running import Runs
from twofold_router.settings import RouterSettings
from twofold_router.turn_service import TurnService
from twofold_router.turns import Turns

_TURNS = turn_pb2.DESCRIPTOR.services_by_name["TurnService"].full_name

# Of the time for an answered turn: the rest is for recording its usage, however long keeping it took.
_KEEP_SHARE = 0.75
# What has ended can be attached to for so long, and so many of them: each has its answer in this process.
_ENDED_S = 60.0
_ENDED_MAX = 256


@contextlib.asynccontextmanager
async def turning(
    registry: grpc.aio.Channel,
    memory: grpc.aio.Channel,
    resolver: Resolver,
    limits: Limits,
    reporting: Reporting,
    publisher: Publisher,
    options: RouterSettings,
    metrics: TurnMetrics,
    *,
    router_id: str,
) -> AsyncIterator[Face]:
    """Runs turns until the block ends; then each is kept if it is answered, else closed as far as it came."""
    timeout_s, judge, router = options.peer_timeout_s, options.url_policy.forbidden_address, options.advertise or router_id
    conversations = MemoryConversations(
        memory, timeout_s=timeout_s, keep_s=_KEEP_SHARE * options.keep_s, lease_s=options.turn_lease_s
    )
    ledger = RegistryLedger(registry, timeout_s=timeout_s)
    owing = Owing(
        conversations,
        ledger,
        period_s=options.usage_sweep_s,
        min_age_s=options.usage_sweep_s,
        told=metrics.usage_delivered,
    )
    runs = Runs(
        turns_max=options.turns_max,
        detached_s=options.detached_s,
        kept_s=_ENDED_S,
        kept_max=_ENDED_MAX,
        gauge=metrics.running.set,
    )
    metrics.usage_waiting.set_function(lambda: owing.waiting)
    async with (
        http_session(connect_timeout_s=options.connect_timeout_s, judge=judge) as session,
        owing.telling(),
    ):
        courses = Courses(
            resolver,
            conversations,
            HttpAgents(session, judge=judge, answer_bytes_max=options.answer_bytes_max),
            Accounts(ledger, owing, limits, publisher),
            reporting.hear,
            metrics.ended,
            router=router,
            lease_s=options.turn_lease_s,
            cold_start_s=options.cold_start_s,
        )
        turns = Turns(runs, courses, resolver, conversations, router=router)
        try:
            yield Face(_TURNS, TurnService(turns), turn_pb2_grpc.add_TurnServiceServicer_to_server)
        finally:
            await turns.close()
