"""The memory service, put together."""

import contextlib
from collections.abc import AsyncIterator
from operator import methodcaller

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
from twofold_chassis.redis import RedisUnavailable, open_link
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
from twofold_memory.settings import Settings
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


@contextlib.asynccontextmanager
async def memory(settings: Settings) -> AsyncIterator[Running]:
    """Serves until the block ends; then accepted work is finished before the stores are closed. Raises StartError."""
    metrics = CollectorRegistry()
    service = settings.memory
    if settings.database.migrate:
        await migrate(settings.database)

    async with contextlib.AsyncExitStack() as cleanup:
        pool = await postgres.open_pool(settings.database, name="memory")
        cleanup.push_async_callback(postgres.close_pool, pool)
        await postgres.require(pool, STATEMENTS["schema_is_there"], schema="memory")
        pulse = postgres.Pulse(pool, STATEMENTS["schema_is_there"])
        cleanup.push_async_callback(pulse.close)
        link = await open_link(settings.redis, must_keep=True)
        cleanup.push_async_callback(link.close)

        # Long work has connections of its own, so that nobody else waits for them.
        long_settings = {"pool_size_max": service.long_pool_size_max, "command_timeout_s": service.long_command_timeout_s}
        long_pool = await postgres.open_pool(settings.database.model_copy(update=long_settings), name="memory-long")
        cleanup.push_async_callback(postgres.close_pool, long_pool)
        search_settings = {"pool_size_max": SEARCHES_AT_ONCE, "command_timeout_s": service.long_command_timeout_s}
        search_pool = await postgres.open_pool(settings.database.model_copy(update=search_settings), name="memory-search")
        cleanup.push_async_callback(postgres.close_pool, search_pool)

        requests = Requests("memory", says_what=True)
        turns = PostgresTurns(pool)
        cleanup.push_async_callback(turns.close)
        conversations = PostgresConversations(pool, requests)
        preferences = PostgresPreferences(pool, requests)
        summaries = PostgresSummaries(pool, requests)
        tool_runs = PostgresToolRuns(pool, requests)
        windows = RedisThreads(
            link, ttl_s=service.thread_ttl_hours * 3600, messages_max=service.window_messages_max, metrics=metrics
        )
        copies = RedisPreferences(link, ttl_s=service.user_ttl_days * 86400)
        summary_copies = RedisSummaries(link, ttl_s=service.thread_ttl_hours * 3600)

        purges = Purges(PostgresPurges(pool, window_ttl_s=service.thread_ttl_hours * 3600), windows)
        await cleanup.enter_async_context(purges.repeated())
        followers = Followers(turns)
        cleanup.push_async_callback(followers.close)
        postgres_answers = Breaker(failures_max=3)
        waiting = RedisJournal(link, ttl_s=service.thread_ttl_hours * 3600, messages_max=service.window_messages_max)
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
        preference_recall = PreferenceRecall(preferences, copies, confirm_s=service.confirm_ms / 1000)
        cleanup.push_async_callback(preference_recall.drain)
        summary_recall = SummaryRecall(summaries, summary_copies)
        cleanup.push_async_callback(summary_recall.drain)
        documents = PostgresDocuments(pool, requests)
        document_recall = DocumentRecall(documents, confirm_s=service.confirm_ms / 1000)
        cleanup.push_async_callback(document_recall.drain)
        await cleanup.enter_async_context(Sweeps([preferences.sweep, tool_runs.give_up]).repeated())
        kept_open = PostgresOpenTurns(pool)
        queue = TurnQueue(kept_open)
        cleanup.push_async_callback(queue.drain)
        open_turns = OpenTurns(kept_open, windows, journal, queue, told=followers.told)
        cleanup.push_async_callback(open_turns.drain)
        await cleanup.enter_async_context(Sweeps([open_turns.sweep], period_s=1.0).repeated())
        search = PostgresSearch(search_pool, long_pool)
        await cleanup.enter_async_context(Sweeps([Indexing(search).sweep], period_s=1.0).repeated())
        history = History(turns, journal)
        changes = Changes(purges)
        cleanup.push_async_callback(changes.drain)

        receipts = PostgresErasures(
            long_pool, requests, copy_ttl_s=service.user_ttl_days * 86400, look_s=service.retention_look_s
        )
        erasures = Erasures(
            receipts, purges, summary_copies, copies, windows, journal, waiting, unreachable=RedisUnavailable
        )
        await cleanup.enter_async_context(erasures.repeated())
        cleanup.push_async_callback(erasures.drain)
        long_turns = PostgresTurns(long_pool)
        cleanup.push_async_callback(long_turns.close)
        exports = Exports(PostgresExports(long_pool), long_turns)

        backlogs = PostgresBacklogs(pool)
        await cleanup.enter_async_context(Sweeps([BacklogGauges(backlogs, metrics).refresh], period_s=15.0).repeated())
        gauge_lasting_calls(lambda: followers.count, lambda: queue.count, metrics)
        sync = Sync(journal, backlogs, RedisSync(link), lambda: purges.settled)
        replays = Replays(windows, journal, told=followers.told)
        cleanup.push_async_callback(replays.drain)
        window_audits = RedisAudits(link, ttl_s=service.thread_ttl_hours * 3600)
        audits = Audits(PostgresAudits(long_pool), long_turns, window_audits, windows, journal)

        faces = [
            Face(
                f"{_PACKAGE}.ConversationService",
                ConversationService(conversations, changes, appends, recall, history),
                conversation_pb2_grpc.add_ConversationServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.RevisionService",
                RevisionService(PostgresRevisions(pool, requests), changes),
                revision_pb2_grpc.add_RevisionServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.BranchService",
                BranchService(PostgresBranches(pool, requests)),
                branch_pb2_grpc.add_BranchServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.ContextService",
                ContextService(appends, recall, summary_recall, preference_recall, document_recall),
                context_pb2_grpc.add_ContextServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.TurnService",
                TurnService(open_turns),
                turn_pb2_grpc.add_TurnServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.WatchService",
                WatchService(Watches(PostgresWatches(pool, turns), followers)),
                watch_pb2_grpc.add_WatchServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.PreferenceService",
                PreferenceService(preferences, preference_recall),
                preference_pb2_grpc.add_PreferenceServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.SummaryService",
                SummaryService(summaries, summary_recall),
                summary_pb2_grpc.add_SummaryServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.ToolRunService",
                ToolRunService(tool_runs),
                tool_run_pb2_grpc.add_ToolRunServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.CheckpointService",
                CheckpointService(PostgresCheckpoints(pool, requests)),
                checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.EventLogService",
                EventLogService(PostgresEvents(pool, requests)),
                event_pb2_grpc.add_EventLogServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.SearchService",
                SearchService(Searches(search)),
                search_pb2_grpc.add_SearchServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.DocumentService",
                DocumentService(documents),
                document_pb2_grpc.add_DocumentServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.TransferService",
                TransferService(Imports(conversations, appends), exports),
                transfer_pb2_grpc.add_TransferServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.ErasureService",
                ErasureService(erasures, receipts, PostgresRetentions(pool, requests)),
                erasure_pb2_grpc.add_ErasureServiceServicer_to_server,
            ),
            Face(
                f"{_PACKAGE}.SyncService",
                SyncService(sync, PostgresDeadLetters(pool, requests), replays, audits),
                sync_pb2_grpc.add_SyncServiceServicer_to_server,
            ),
        ]
        running = await cleanup.enter_async_context(
            serving(
                service,
                settings.log,
                faces=faces,
                check=pulse.beats,
                metrics=metrics,
                # A window is put together from stored bytes instead of message objects.
                serializers={f"/{_PACKAGE}.ConversationService/ReadWindow": methodcaller("SerializeToString")},
            )
        )
        yield running
