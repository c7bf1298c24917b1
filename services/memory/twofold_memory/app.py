"""The memory service, put together."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from prometheus_client import CollectorRegistry

from twofold.memory.v1 import (
    branch_pb2_grpc,
    checkpoint_pb2_grpc,
    context_pb2_grpc,
    conversation_pb2_grpc,
    document_pb2_grpc,
    erasure_pb2_grpc,
    event_pb2_grpc,
    preference_pb2_grpc,
    revision_pb2_grpc,
    search_pb2_grpc,
    summary_pb2_grpc,
    sync_pb2_grpc,
    tool_run_pb2_grpc,
    transfer_pb2_grpc,
    turn_pb2_grpc,
    watch_pb2_grpc,
)
from twofold_chassis import postgres
from twofold_chassis.breaker import Breaker
from twofold_chassis.pools import PoolMetrics
from twofold_chassis.postgres import Pool
from twofold_chassis.redis import RedisLink, RedisUnavailable, open_link
from twofold_chassis.requests import Requests
from twofold_chassis.server import Face, Running, serving
from twofold_memory.appends import Appends
from twofold_memory.audits import Audits
from twofold_memory.branch_service import BranchService
from twofold_memory.cache.audit import RedisAudits
from twofold_memory.cache.journal import RedisJournal
from twofold_memory.cache.preferences import RedisPreferences
from twofold_memory.cache.summaries import RedisSummaries
from twofold_memory.cache.sync import RedisSync
from twofold_memory.cache.threads import RedisThreads
from twofold_memory.changes import Changes
from twofold_memory.checkpoint_service import CheckpointService
from twofold_memory.context_service import ContextService
from twofold_memory.conversation_service import ConversationService
from twofold_memory.dead_letters import Replays
from twofold_memory.document_service import DocumentService
from twofold_memory.documents import DocumentRecall
from twofold_memory.erasure_service import ErasureService
from twofold_memory.erasures import Erasures
from twofold_memory.event_log_service import EventLogService
from twofold_memory.exports import Exports
from twofold_memory.followers import Followers
from twofold_memory.history import History
from twofold_memory.imports import Imports
from twofold_memory.journal import Journal
from twofold_memory.migrate import migrate
from twofold_memory.open_turns import OpenTurns
from twofold_memory.preference_service import PreferenceService
from twofold_memory.preferences import PreferenceRecall
from twofold_memory.purges import Purges
from twofold_memory.recall import Recall
from twofold_memory.revision_service import RevisionService
from twofold_memory.search_service import SearchService
from twofold_memory.searching import SEARCHES_AT_ONCE, Indexing, Searches
from twofold_memory.settings import MemorySettings, Settings
from twofold_memory.store.audits import PostgresAudits
from twofold_memory.store.backlogs import PostgresBacklogs
from twofold_memory.store.branches import PostgresBranches
from twofold_memory.store.checkpoints import PostgresCheckpoints
from twofold_memory.store.conversations import PostgresConversations
from twofold_memory.store.dead_letters import PostgresDeadLetters
from twofold_memory.store.documents import PostgresDocuments
from twofold_memory.store.erasures import PostgresErasures
from twofold_memory.store.events import PostgresEvents
from twofold_memory.store.exports import PostgresExports
from twofold_memory.store.journal import PostgresJournal
from twofold_memory.store.open_turns import PostgresOpenTurns
from twofold_memory.store.preferences import PostgresPreferences
from twofold_memory.store.purges import PostgresPurges
from twofold_memory.store.retentions import PostgresRetentions
from twofold_memory.store.revisions import PostgresRevisions
from twofold_memory.store.search import PostgresSearch
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.store.summaries import PostgresSummaries
from twofold_memory.store.tool_runs import PostgresToolRuns
from twofold_memory.store.turns import PostgresTurns
from twofold_memory.store.watches import PostgresWatches
from twofold_memory.summaries import SummaryRecall
from twofold_memory.summary_service import SummaryService
from twofold_memory.sweeps import Sweeps
from twofold_memory.sync_service import SyncService
from twofold_memory.sync_status import BacklogGauges, Sync, gauge_lasting_calls
from twofold_memory.tool_run_service import ToolRunService
from twofold_memory.transfer_service import TransferService
from twofold_memory.turn_queue import TurnQueue
from twofold_memory.turn_service import TurnService
from twofold_memory.watch_service import WatchService
from twofold_memory.watching import Watches

_PACKAGE = "twofold.memory.v1"


@dataclass(frozen=True, slots=True)
class _Stores:
    """Connections. Long work and searches have their own, so that nobody else waits for them."""

    pool: Pool
    long_pool: Pool
    search_pool: Pool
    link: RedisLink
    pulse: postgres.Pulse


@dataclass(frozen=True, slots=True)
class _Core:
    """What everything else stands on: the ways of turns into the two memories and out of them."""

    requests: Requests
    conversations: PostgresConversations
    turns: PostgresTurns
    windows: RedisThreads
    waiting: RedisJournal
    purges: Purges
    changes: Changes
    followers: Followers
    journal: Journal
    appends: Appends
    recall: Recall


@dataclass(frozen=True, slots=True)
class _Copies:
    """What is kept in Redis besides windows and the journal."""

    preferences: RedisPreferences
    summaries: RedisSummaries


@contextlib.asynccontextmanager
async def memory(settings: Settings) -> AsyncIterator[Running]:
    """Serves until the block ends; then accepted work is finished before the stores are closed. Raises StartError.

    Each group is built on those above it, and ends before them.
    """
    service, metrics = settings.memory, CollectorRegistry()
    if settings.database.migrate:
        await migrate(settings.database)
    async with contextlib.AsyncExitStack() as cleanup:
        stores = await _stores(settings, metrics, cleanup)
        core = await _core(service, stores, metrics, cleanup)
        copies = _Copies(
            RedisPreferences(stores.link, ttl_s=service.user_ttl_days * 86400),
            RedisSummaries(stores.link, ttl_s=service.thread_ttl_hours * 3600),
        )
        faces = [
            *_conversations(stores, core),
            *await _contexts(service, stores, core, copies, cleanup),
            *await _live_turns(stores, core, metrics, cleanup),
            *await _records(stores, core, cleanup),
            *await _search(stores, cleanup),
            *await _moving(service, stores, core, copies, cleanup),
            *await _operations(service, stores, core, metrics, cleanup),
        ]
        running = await cleanup.enter_async_context(
            serving(
                service,
                settings.log,
                faces=faces,
                check=stores.pulse.beats,
                metrics=metrics,
                # A window is put together from stored bytes instead of message objects.
                serializers={f"/{_PACKAGE}.ConversationService/ReadWindow": methodcaller("SerializeToString")},
            )
        )
        yield running


async def _stores(settings: Settings, metrics: CollectorRegistry, cleanup: contextlib.AsyncExitStack) -> _Stores:
    service, pool_metrics = settings.memory, PoolMetrics(metrics)

    async def pool_of(name: str, **changes: object) -> Pool:
        pool = await postgres.open_pool(settings.database.model_copy(update=changes), name=name, metrics=pool_metrics)
        cleanup.push_async_callback(postgres.close_pool, pool)
        return pool

    pool = await pool_of("memory")
    await postgres.require(pool, STATEMENTS["schema_is_there"], schema="memory")
    pulse = postgres.Pulse(pool, STATEMENTS["schema_is_there"])
    cleanup.push_async_callback(pulse.close)
    link = await open_link(settings.redis, must_keep=True)
    cleanup.push_async_callback(link.close)
    long_s = service.long_command_timeout_s
    long_pool = await pool_of("memory-long", pool_size_max=service.long_pool_size_max, command_timeout_s=long_s)
    search_pool = await pool_of("memory-search", pool_size_max=SEARCHES_AT_ONCE, command_timeout_s=long_s)
    return _Stores(pool, long_pool, search_pool, link, pulse)


async def _core(
    service: MemorySettings, stores: _Stores, metrics: CollectorRegistry, cleanup: contextlib.AsyncExitStack
) -> _Core:
    pool, link = stores.pool, stores.link
    ttl_s, messages_max = service.thread_ttl_hours * 3600, service.window_messages_max
    requests = Requests("memory", says_what=True)
    turns = PostgresTurns(pool)
    cleanup.push_async_callback(turns.close)
    windows = RedisThreads(link, ttl_s=ttl_s, messages_max=messages_max, metrics=metrics)
    waiting = RedisJournal(link, ttl_s=ttl_s, messages_max=messages_max)
    purges = Purges(PostgresPurges(pool, window_ttl_s=ttl_s), windows)
    await cleanup.enter_async_context(purges.repeated())
    changes = Changes(purges)
    cleanup.push_async_callback(changes.drain)
    followers = Followers(turns)
    cleanup.push_async_callback(followers.close)
    postgres_answers = Breaker(failures_max=3)
    journal = Journal(
        PostgresJournal(pool),
        waiting,
        breaker=postgres_answers,
        put_s=service.journal_ms / 1000,
        metrics=metrics,
        unreachable=RedisUnavailable,
        told=followers.told,
    )
    await cleanup.enter_async_context(journal.drained())
    appends = Appends(
        turns,
        windows,
        journal,
        breaker=postgres_answers,
        lanes=service.commit_lanes,
        commit_s=service.commit_ms / 1000,
        metrics=metrics,
        told=followers.told,
    )
    cleanup.push_async_callback(appends.drain)
    recall = Recall(
        turns,
        windows,
        journal,
        copies_are_settled=lambda: purges.settled,
        confirm_s=service.confirm_ms / 1000,
        metrics=metrics,
    )
    cleanup.push_async_callback(recall.drain)
    return _Core(
        requests=requests,
        conversations=PostgresConversations(pool, requests),
        turns=turns,
        windows=windows,
        waiting=waiting,
        purges=purges,
        changes=changes,
        followers=followers,
        journal=journal,
        appends=appends,
        recall=recall,
    )


def _conversations(stores: _Stores, core: _Core) -> list[Face]:
    history = History(core.turns, core.journal)
    revisions = PostgresRevisions(stores.pool, core.requests)
    branches = PostgresBranches(stores.pool, core.requests)
    return [
        _face(
            "Conversation",
            ConversationService(core.conversations, core.changes, core.appends, core.recall, history),
            conversation_pb2_grpc.add_ConversationServiceServicer_to_server,
        ),
        _face("Revision", RevisionService(revisions, core.changes), revision_pb2_grpc.add_RevisionServiceServicer_to_server),
        _face("Branch", BranchService(branches), branch_pb2_grpc.add_BranchServiceServicer_to_server),
    ]


async def _contexts(
    service: MemorySettings, stores: _Stores, core: _Core, copies: _Copies, cleanup: contextlib.AsyncExitStack
) -> list[Face]:
    """What an agent is told before a turn, and the services of what that is made of."""
    confirm_s = service.confirm_ms / 1000
    preferences = PostgresPreferences(stores.pool, core.requests)
    preference_recall = PreferenceRecall(preferences, copies.preferences, confirm_s=confirm_s)
    cleanup.push_async_callback(preference_recall.drain)
    await cleanup.enter_async_context(Sweeps([preferences.sweep]).repeated())
    summaries = PostgresSummaries(stores.pool, core.requests)
    summary_recall = SummaryRecall(summaries, copies.summaries)
    cleanup.push_async_callback(summary_recall.drain)
    documents = PostgresDocuments(stores.pool, core.requests)
    document_recall = DocumentRecall(documents, confirm_s=confirm_s)
    cleanup.push_async_callback(document_recall.drain)
    return [
        _face(
            "Context",
            ContextService(core.appends, core.recall, summary_recall, preference_recall, document_recall),
            context_pb2_grpc.add_ContextServiceServicer_to_server,
        ),
        _face(
            "Preference",
            PreferenceService(preferences, preference_recall),
            preference_pb2_grpc.add_PreferenceServiceServicer_to_server,
        ),
        _face("Summary", SummaryService(summaries, summary_recall), summary_pb2_grpc.add_SummaryServiceServicer_to_server),
        _face("Document", DocumentService(documents), document_pb2_grpc.add_DocumentServiceServicer_to_server),
    ]


async def _live_turns(
    stores: _Stores, core: _Core, metrics: CollectorRegistry, cleanup: contextlib.AsyncExitStack
) -> list[Face]:
    """Turns that are opened first, and those who watch."""
    kept_open = PostgresOpenTurns(stores.pool)
    queue = TurnQueue(kept_open)
    cleanup.push_async_callback(queue.drain)
    open_turns = OpenTurns(kept_open, core.windows, core.journal, queue, told=core.followers.told)
    cleanup.push_async_callback(open_turns.drain)
    await cleanup.enter_async_context(Sweeps([open_turns.sweep], period_s=1.0).repeated())
    gauge_lasting_calls(lambda: core.followers.count, lambda: queue.count, metrics)
    watches = Watches(PostgresWatches(stores.pool, core.turns), core.followers)
    return [
        _face("Turn", TurnService(open_turns), turn_pb2_grpc.add_TurnServiceServicer_to_server),
        _face("Watch", WatchService(watches), watch_pb2_grpc.add_WatchServiceServicer_to_server),
    ]


async def _records(stores: _Stores, core: _Core, cleanup: contextlib.AsyncExitStack) -> list[Face]:
    """What agents keep of their work."""
    tool_runs = PostgresToolRuns(stores.pool, core.requests)
    await cleanup.enter_async_context(Sweeps([tool_runs.give_up]).repeated())
    checkpoints = PostgresCheckpoints(stores.pool, core.requests)
    events = PostgresEvents(stores.pool, core.requests)
    return [
        _face("ToolRun", ToolRunService(tool_runs), tool_run_pb2_grpc.add_ToolRunServiceServicer_to_server),
        _face("Checkpoint", CheckpointService(checkpoints), checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server),
        _face("EventLog", EventLogService(events), event_pb2_grpc.add_EventLogServiceServicer_to_server),
    ]


async def _search(stores: _Stores, cleanup: contextlib.AsyncExitStack) -> list[Face]:
    search = PostgresSearch(stores.search_pool, stores.long_pool)
    await cleanup.enter_async_context(Sweeps([Indexing(search).sweep], period_s=1.0).repeated())
    return [_face("Search", SearchService(Searches(search)), search_pb2_grpc.add_SearchServiceServicer_to_server)]


async def _moving(
    service: MemorySettings, stores: _Stores, core: _Core, copies: _Copies, cleanup: contextlib.AsyncExitStack
) -> list[Face]:
    """The ways in and out for whole conversations, and the end of them."""
    long_turns = PostgresTurns(stores.long_pool)
    cleanup.push_async_callback(long_turns.close)
    exports = Exports(PostgresExports(stores.long_pool), long_turns)
    receipts = PostgresErasures(
        stores.long_pool, core.requests, copy_ttl_s=service.user_ttl_days * 86400, look_s=service.retention_look_s
    )
    erasures = Erasures(
        receipts,
        core.purges,
        copies.summaries,
        copies.preferences,
        core.windows,
        core.journal,
        core.waiting,
        unreachable=RedisUnavailable,
    )
    await cleanup.enter_async_context(erasures.repeated())
    cleanup.push_async_callback(erasures.drain)
    retentions = PostgresRetentions(stores.pool, core.requests)
    return [
        _face(
            "Transfer",
            TransferService(Imports(core.conversations, core.appends), exports),
            transfer_pb2_grpc.add_TransferServiceServicer_to_server,
        ),
        _face(
            "Erasure",
            ErasureService(erasures, receipts, retentions),
            erasure_pb2_grpc.add_ErasureServiceServicer_to_server,
        ),
    ]


async def _operations(
    service: MemorySettings,
    stores: _Stores,
    core: _Core,
    metrics: CollectorRegistry,
    cleanup: contextlib.AsyncExitStack,
) -> list[Face]:
    """How the two memories stand, and what an operator does about it."""
    backlogs = PostgresBacklogs(stores.pool)
    await cleanup.enter_async_context(Sweeps([BacklogGauges(backlogs, metrics).refresh], period_s=15.0).repeated())
    sync = Sync(core.journal, backlogs, RedisSync(stores.link), lambda: core.purges.settled)
    replays = Replays(core.windows, core.journal, told=core.followers.told)
    cleanup.push_async_callback(replays.drain)
    audited_turns = PostgresTurns(stores.long_pool)
    cleanup.push_async_callback(audited_turns.close)
    window_audits = RedisAudits(stores.link, ttl_s=service.thread_ttl_hours * 3600)
    audits = Audits(PostgresAudits(stores.long_pool), audited_turns, window_audits, core.windows, core.journal)
    dead_letters = PostgresDeadLetters(stores.pool, core.requests)
    return [_face("Sync", SyncService(sync, dead_letters, replays, audits), sync_pb2_grpc.add_SyncServiceServicer_to_server)]


def _face(noun: str, servicer: Any, add: Callable[[Any, Any], None]) -> Face:
    return Face(f"{_PACKAGE}.{noun}Service", servicer, add)
