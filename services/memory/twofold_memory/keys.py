"""Every Redis key of the memory service, how long it lives, and what losing it costs."""

from zlib import crc32

from twofold_chassis import keys
from twofold_memory.threads import ThreadKey

JOURNAL_SHARDS = 64


def thread_messages(key: ThreadKey) -> str:
    """List of the newest messages (`encoding.element`). Lives MEMORY__THREAD_TTL_HOURS after the last append or fill.

    Lost: the next read of the thread asks Postgres once and fills it again.
    """
    return f"thread:{{{_thread(key)}}}:messages"


def thread_head(key: ThreadKey) -> str:
    """Hash: epoch, first, next (0 = cold), hw (highest seq ever told), bytes, owner, erased. Lives as long as the list.

    Lost: the window counts as cold, see above. The window is warm iff LLEN of the list = next - first.
    """
    return f"thread:{{{_thread(key)}}}:head"


def thread_waiting(key: ThreadKey) -> str:
    """List of the ids of turns that wait for Postgres, in order. No time to live: what waits must not expire.

    Lost: workers that hold copies put them back; a turn is lost only if every worker that holds a copy has died as well.
    """
    return f"thread:{{{_thread(key)}}}:waiting"


def thread_waiting_data(key: ThreadKey) -> str:
    """Hash: turn id → the turn (journal.lua says how). Lives and is lost as the list."""
    return f"thread:{{{_thread(key)}}}:waiting_data"


def all_of_thread(key: ThreadKey) -> tuple[str, str, str, str]:
    """The four keys of a thread, in the order in which every script of ours takes them."""
    return thread_messages(key), thread_head(key), thread_waiting(key), thread_waiting_data(key)


def journal(shard: int) -> str:
    """Hash: thread → a random token, for each thread that may have turns waiting. No time to live.

    Lost: turns of a worker that has died are found by the next read or append of their thread instead of by a search.
    """
    return f"journal:{{{shard}}}"


def journal_shard(key: ThreadKey) -> int:
    """Which part of the index a thread is in."""
    return crc32(_thread(key).encode()) % JOURNAL_SHARDS


def thread_summary(key: ThreadKey) -> str:
    """Hash: the newest summaries, their version, the epoch that they were read in. Lives as long as an idle thread's list.

    Lost: the next context asks Postgres once and fills it again. Of another epoch than the window: not used.
    """
    return f"thread:{{{_thread(key)}}}:summary"


def user_preferences(workspace_id: str, user_id: str) -> str:
    """Hash: key → `version:microseconds[@expiry]:value`, and the version of the whole. Lives MEMORY__USER_TTL_DAYS.

    Lost: the next read asks Postgres once and fills it again.
    """
    return f"user:{{{keys.part(workspace_id)}/{keys.part(user_id)}}}:preferences"


def _thread(key: ThreadKey) -> str:
    return f"{keys.part(key.workspace_id)}/{keys.part(key.thread_id)}"
