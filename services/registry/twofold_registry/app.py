"""Puts the registry together."""

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from twofold.registry.v1.agent_pb2_grpc import add_AgentServiceServicer_to_server
from twofold.registry.v1.audit_pb2_grpc import add_AuditServiceServicer_to_server
from twofold.registry.v1.billing_pb2_grpc import add_BillingServiceServicer_to_server
from twofold.registry.v1.change_pb2_grpc import add_ChangeServiceServicer_to_server
from twofold.registry.v1.permission_pb2_grpc import add_PermissionServiceServicer_to_server
from twofold.registry.v1.pod_pb2_grpc import add_PodServiceServicer_to_server
from twofold.registry.v1.session_pb2_grpc import add_SessionHistoryServiceServicer_to_server
from twofold.registry.v1.terms_pb2_grpc import add_TermsServiceServicer_to_server
from twofold.registry.v1.usage_pb2_grpc import add_UsageServiceServicer_to_server
from twofold.registry.v1.user_pb2_grpc import add_UserServiceServicer_to_server
from twofold.registry.v1.workspace_pb2_grpc import add_WorkspaceServiceServicer_to_server
from twofold_chassis import postgres
from twofold_chassis.pools import PoolMetrics
from twofold_chassis.requests import Requests
from twofold_chassis.server import Face, Running, serving
from twofold_chassis.settings import DatabaseSettings
from twofold_chassis.urls import UrlPolicy
from twofold_registry.agent_service import AgentService
from twofold_registry.audit_chains import Chains
from twofold_registry.audit_service import AuditService
from twofold_registry.billing_service import BillingService
from twofold_registry.change_service import ChangeService
from twofold_registry.migrate import migrate
from twofold_registry.permission_service import PermissionService
from twofold_registry.pod_service import PodService
from twofold_registry.routers import Routers
from twofold_registry.session_service import SessionHistoryService
from twofold_registry.settings import Settings
from twofold_registry.store.agents import PostgresAgents
from twofold_registry.store.audit import PostgresAudit, PostgresChains
from twofold_registry.store.billing import PostgresBilling
from twofold_registry.store.caps import PostgresCaps
from twofold_registry.store.changes import Changes
from twofold_registry.store.checks import PostgresChecks
from twofold_registry.store.feed import PostgresFeed, PostgresRegistrations, listening
from twofold_registry.store.permissions import PostgresPermissions
from twofold_registry.store.pods import PostgresPods
from twofold_registry.store.purges import PostgresPurges
from twofold_registry.store.reads import Reads, renew_epoch
from twofold_registry.store.replica import open_replica
from twofold_registry.store.sessions import PostgresSessions
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.store.sweeps import postgres_sweeps
from twofold_registry.store.terms import PostgresTerms
from twofold_registry.store.usage import PostgresUsage
from twofold_registry.store.users import PostgresUsers
from twofold_registry.store.workspaces import PostgresWorkspaces
from twofold_registry.sweeps import Sweep, Sweeps
from twofold_registry.terms_service import TermsService
from twofold_registry.usage_service import UsageService
from twofold_registry.user_service import UserService
from twofold_registry.watching import Watching
from twofold_registry.workspace_service import WorkspaceService

_HOURLY = 360
"""Rounds of sweeps, at their usual period."""


@contextlib.asynccontextmanager
async def registry(settings: Settings) -> AsyncIterator[Running]:
    """The registry, serving until the block ends. Raises StartError."""
    if not settings.database.keeps_tenants_apart:
        structlog.get_logger("twofold.registry").warning(
            "Postgres does not keep tenants apart: give DATABASE__SYSTEM_URL and DATABASE__MIGRATE_URL roles of their own"
        )
    if settings.database.migrate:
        await migrate(settings.database)
    metrics = CollectorRegistry()
    pools = PoolMetrics(metrics)
    pool = await postgres.open_pool(settings.database, name="registry", metrics=pools)
    system = await postgres.open_pool(settings.database.system, name="registry-system", metrics=pools)
    long_pool = await postgres.open_pool(_long(settings), name="registry-long", metrics=pools)
    replica = await open_replica(settings.database, pools, metrics)
    pulse = postgres.Pulse(pool, STATEMENTS["read_head"])
    try:
        await postgres.require(pool, STATEMENTS["read_head"], schema="registry")
        policy = UrlPolicy(
            settings.registry.url_suffixes,
            settings.registry.allow_loopback_urls,
            settings.registry.require_namespaces,
        )
        await renew_epoch(pool)
        reads = Reads(pool, replica)
        routers = Routers(PostgresRegistrations(system), lease_s=settings.registry.lease_ms / 1000)
        watching = Watching(PostgresFeed(system), routers, watchers_max=settings.registry.watchers_max)
        requests = Requests("registry", is_swept=True)
        grace = timedelta(days=settings.registry.purge_after_days)
        changes = Changes(pool, requests, made=watching.wake)
        workspaces = PostgresWorkspaces(reads, changes, grace, Reads(system))
        users = PostgresUsers(reads, changes, grace)
        agents = PostgresAgents(reads, changes, grace, policy)
        purges = PostgresPurges(system, pool, {"workspace": workspaces.purge, "user": users.purge, "agent": agents.purge})
        usage = PostgresUsage(pool, reads, changes, system)
        caps = PostgresCaps(reads, changes, system)
        sweeps = Sweeps(
            [
                *postgres_sweeps(system, settings.registry, requests),
                *purges.sweeps(),
                Sweep("caps", caps.renew),
                Sweep("usage_partitions", usage.add_partitions, every=_HOURLY),
            ],
            metrics,
            period_s=settings.registry.sweep_period_s,
        )
        checks = PostgresChecks(pool, reads)
        faces = [
            _face("Workspace", WorkspaceService(workspaces), add_WorkspaceServiceServicer_to_server),
            _face("User", UserService(users), add_UserServiceServicer_to_server),
            _face("Agent", AgentService(agents), add_AgentServiceServicer_to_server),
            _face(
                "Permission",
                PermissionService(PostgresPermissions(reads, changes), checks, routers),
                add_PermissionServiceServicer_to_server,
            ),
            _face("Terms", TermsService(PostgresTerms(reads)), add_TermsServiceServicer_to_server),
            _face("Usage", UsageService(usage), add_UsageServiceServicer_to_server),
            _face("Billing", BillingService(PostgresBilling(reads, changes), caps), add_BillingServiceServicer_to_server),
            _face(
                "Audit",
                AuditService(PostgresAudit(reads), Chains(PostgresChains(long_pool)), settings.registry.audit_keys),
                add_AuditServiceServicer_to_server,
            ),
            _face("Change", ChangeService(watching, routers), add_ChangeServiceServicer_to_server),
            _face("Pod", PodService(PostgresPods(system, requests)), add_PodServiceServicer_to_server),
            _face(
                "SessionHistory",
                SessionHistoryService(PostgresSessions(pool, reads)),
                add_SessionHistoryServiceServicer_to_server,
            ),
        ]
        async with (
            listening(settings.database, watching.wake),
            serving(settings.registry, settings.log, faces=faces, check=pulse.beats, metrics=metrics) as running,
            sweeps.repeated(),
        ):
            yield running
        await routers.close()
        await checks.drain()
    finally:
        await pulse.close()
        if replica is not None:
            await replica.close()
        await postgres.close_pool(long_pool)
        await postgres.close_pool(system)
        await postgres.close_pool(pool)


def _long(settings: Settings) -> DatabaseSettings:
    """For work that takes long: few connections of its own, which nobody else waits for."""
    service = settings.registry
    changes = {"pool_size_max": service.long_pool_size_max, "command_timeout_s": service.long_command_timeout_s}
    return settings.database.model_copy(update=changes)


def _face(noun: str, servicer: Any, add: Callable[[Any, Any], None]) -> Face:
    return Face(f"twofold.registry.v1.{noun}Service", servicer, add)
