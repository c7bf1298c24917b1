"""The copy of conversations' newest summaries in L1."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from twofold_chassis.redis import RedisLink, Script, losable
from twofold_memory import keys
from twofold_memory.summaries import Summaries, Summary
from twofold_memory.threads import ThreadKey

# No version of a conversation's summaries is as high.
_NEWER_THAN_ANY = 2**53


class RedisSummaries:
    """One hash a conversation: epoch, version, and the summaries as JSON; also that there are none."""

    def __init__(self, link: RedisLink, *, ttl_s: float) -> None:
        self._link = link
        self._ttl_ms = round(ttl_s * 1000)
        self._put = Script.load("twofold_memory.cache.lua", "put_summaries")

    async def look(self, key: ThreadKey) -> Summaries | None:
        """The copy. None means there is none (that can be had), never that the conversation has no summaries."""
        reply = await losable(
            self._link.call("HMGET", keys.thread_summary(key), "epoch", "version", "summaries"), otherwise=None
        )
        if reply is None or None in reply:
            return None
        epoch, version, entries = reply
        try:
            return Summaries([_summary(entry) for entry in json.loads(entries)], int(version), int(epoch))
        except (ValueError, TypeError, KeyError):
            return None  # written by another version, or by hand

    async def put(self, key: ThreadKey, summaries: Summaries) -> None:
        """Replaces the copy, unless it is as new. What cannot be done now, a later read does."""
        entries = [asdict(entry) | {"created_at": entry.created_at.isoformat()} for entry in summaries.entries]
        arguments = (summaries.epoch, summaries.version, self._ttl_ms, json.dumps(entries))
        await losable(self._link.run(self._put, (keys.thread_summary(key),), arguments), otherwise=None)

    async def drop(self, key: ThreadKey, epoch: int) -> bool:
        """Puts an empty copy in the place of every one of this epoch or older, and of late ones; whether that is sure."""
        arguments = (epoch, _NEWER_THAN_ANY, self._ttl_ms, "[]")
        reply = await losable(self._link.run(self._put, (keys.thread_summary(key),), arguments), otherwise=None)
        return reply is not None


def _summary(entry: Mapping[str, Any]) -> Summary:
    return Summary(**{**entry, "created_at": datetime.fromisoformat(entry["created_at"])})
