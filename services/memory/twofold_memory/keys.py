"""Every Redis key of the memory service, how long it lives, and what losing it costs."""

from twofold_chassis import keys
from twofold_memory.threads import ThreadKey


def thread_messages(key: ThreadKey) -> str:
    """List of the newest messages (`encoding.element`). Lives MEMORY__THREAD_TTL_HOURS after the last append or fill.

    Lost: the next read of the thread asks Postgres once and fills it again.
    """
    return f"thread:{{{_thread(key)}}}:messages"


def thread_head(key: ThreadKey) -> str:
    """Hash: epoch, first, next (0 = cold), hw (highest seq ever told), owner. Lives as long as the list.

    Lost: the window counts as cold, see above. The window is warm iff LLEN of the list = next - first.
    """
    return f"thread:{{{_thread(key)}}}:head"


def user_preferences(workspace_id: str, user_id: str) -> str:
    """Hash: key → `version:microseconds:value`, and the version of the whole. Lives MEMORY__USER_TTL_DAYS.

    Lost: the next read asks Postgres once and fills it again.
    """
    return f"user:{{{keys.part(workspace_id)}/{keys.part(user_id)}}}:preferences"


def _thread(key: ThreadKey) -> str:
    return f"{keys.part(key.workspace_id)}/{keys.part(key.thread_id)}"
