"""The bugs that are planted: flaws of the textbook, and guards of the protocol that are dropped, one at a time."""

from dataclasses import dataclass, field

from benchmarks.chaos.clients import Appetite

# Where memory.append_turns has its newest form.
APPEND_SQL = "migrations/versions/0005_search.sql"
_FIRST_SQL = "migrations/versions/0001_conversations.sql"

_RETRIES = Appetite(repeats=0.4, appends=0.35, deletions=0)
_WAITING = Appetite(appends=0.6, journaled=0.3, deletions=0)
_CUT_OFF = (("redis swallow", "redis answers held", "redis hole", "redis refuse"),)
_CRASHES = (("postgres kill", "postgres immediate"),)
_POSTGRES_AWAY = ("postgres immediate", "postgres stop", "postgres slow")
# What one worker journals while Postgres is out of its reach, the other cannot see while Redis is out of its own.
_CUT_APART = (("postgres hole", "postgres answers held"), ("redis refuse", "redis hole"))
_LOST_WHILE_WAITING = (_POSTGRES_AWAY, ("redis flush",))


@dataclass(frozen=True, slots=True)
class Patch:
    """Text that stands in a file of the service exactly once, and what stands there instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug and the schedules it is tried under: faults of these `tracks`, or all that `kind` has."""

    name: str
    flaw: str
    patches: tuple[Patch, ...]
    tracks: tuple[tuple[str, ...], ...] = ()
    kind: str = "calm"
    gap_s: float = 0.2
    appetite: Appetite = field(default_factory=Appetite)
    schedules_max: int = 4


MUTANTS = (
    Mutant("none", "nothing: the service as it is", (), kind="link", schedules_max=2),
    Mutant(
        "none-directed",
        "nothing: the service as it is, under faults as they are directed at the others",
        (),
        tracks=(
            _POSTGRES_AWAY,
            ("redis flush", "redis refuse", "redis hole", "window evict"),
            ("worker kill", "postgres hole"),
        ),
        appetite=Appetite(appends=0.5, with_token=0.5, journaled=0.3, edits=0.05, fresh=0.1, deletions=0.02),
        schedules_max=2,
    ),
    # Flaws of the textbook --------------------------------------------------------------------------------
    Mutant(
        "ack-before-durable",
        "acknowledges before the commit is on disk",
        (
            Patch(
                APPEND_SQL,
                "    IF true = ANY (t_new) THEN\n",
                "    PERFORM set_config('synchronous_commit', 'off', true);\n    IF true = ANY (t_new) THEN\n",
            ),
        ),
        tracks=_CRASHES,
        appetite=Appetite(appends=0.8, journaled=0, deletions=0),
    ),
    Mutant(
        "no-key-look-up",
        "a retry is a new turn: nobody looks for its id",
        (
            Patch(
                _FIRST_SQL,
                "    PRIMARY KEY (workspace_id, thread_id, turn_id),\n    CONSTRAINT a_turn_has_messages",
                "    CONSTRAINT a_turn_has_messages",
            ),
            Patch(
                APPEND_SQL,
                "WHERE k.workspace_id = t.workspace_id AND k.thread_id = t.thread_id AND k.turn_id = t.turn_id\n",
                "WHERE false\n",
            ),
        ),
        appetite=_RETRIES,
    ),
    Mutant(
        "no-payload-hash",
        "another payload under the same id is acknowledged as a repeat",
        (Patch(APPEND_SQL, "WHEN k.payload_hash = t.payload_hash THEN", "WHEN k.turn_id IS NOT NULL THEN"),),
        appetite=_RETRIES,
    ),
    Mutant(
        "get-then-create",
        "looks whether there is a conversation, and makes one some milliseconds later",
        (
            Patch(
                APPEND_SQL,
                "        WHERE t.is_new\n",
                "        WHERE t.is_new AND NOT EXISTS (SELECT FROM memory.conversations c"
                " WHERE c.workspace_id = t.workspace_id AND c.thread_id = t.thread_id)"
                " AND pg_sleep(0.005)::text IS NOT NULL\n",
            ),
            Patch(
                APPEND_SQL,
                '"C", t.place\n        ON CONFLICT (workspace_id, thread_id) DO NOTHING;\n',
                '"C", t.place;\n',
            ),
        ),
        appetite=Appetite(fresh=0.3),
    ),
    Mutant(
        "serial-numbers",
        "numbers come from a sequence of the database",
        (
            Patch(
                APPEND_SQL,
                "CREATE OR REPLACE FUNCTION memory.append_turns(",
                "CREATE SEQUENCE memory.serial INCREMENT 10;\nGRANT USAGE ON SEQUENCE memory.serial TO PUBLIC;\n"
                "CREATE OR REPLACE FUNCTION memory.append_turns(",
            ),
            Patch(
                APPEND_SQL,
                "        SELECT j.*, j.next_seq + sum(j.size) OVER thread - j.size AS first,"
                " j.next_seq + sum(j.size) OVER thread - 1 AS last\n"
                "        FROM judged j\n        WHERE j.verdict = 'STORED'\n"
                "        WINDOW thread AS (PARTITION BY j.workspace_id, j.thread_id ORDER BY j.place)\n",
                "        SELECT j.*, j.serial AS first, j.serial + j.size - 1 AS last\n"
                "        FROM (SELECT *, nextval('memory.serial') AS serial FROM judged WHERE verdict = 'STORED') j\n",
            ),
        ),
    ),
    Mutant(
        "no-row-lock",
        "two writers number the same thread at the same time",
        (Patch(APPEND_SQL, "        LIMIT 1\n        FOR UPDATE\n", "        LIMIT 1\n"),),
    ),
    Mutant(
        "served-without-verify",
        "a warm window is called complete although nobody asked Postgres",
        (
            Patch(
                "recall.py",
                "if head is not None and head.epoch == copy.epoch and copy.next_seq == head.next_seq:",
                "if head is not None:",
            ),
        ),
        tracks=_CUT_OFF,
        appetite=Appetite(deletions=0.03),
    ),
    Mutant(
        "window-not-counted",
        "appends onto a window of which a part was evicted",
        (
            Patch(
                "cache/lua/window.lua",
                "elseif turn.epoch > old_epoch or next_seq == 0 or redis.call('LLEN', messages) ~= next_seq - start then",
                "elseif turn.epoch > old_epoch or next_seq == 0 then",
            ),
            Patch(
                "cache/lua/look.lua",
                "if redis.call('LLEN', KEYS[1]) ~= tonumber(head[3]) - tonumber(head[2]) then",
                "if false then",
            ),
        ),
        tracks=(("window evict",),),
    ),
    Mutant(
        "fill-adds",
        "a fill adds to the window instead of replacing it",
        (
            Patch(
                "cache/lua/fill.lua",
                "local bytes = 0\nredis.call('DEL', KEYS[1])\n",
                "local bytes = 0\n",
            ),
            Patch("cache/lua/fill.lua", "length >= count and redis.call('LLEN', KEYS[1]) == length then", "false then"),
            Patch(
                "cache/lua/fill.lua",
                "'first', next_seq - count, 'next', next_seq,",
                "'first', next_seq - redis.call('LLEN', KEYS[1]), 'next', next_seq,",
            ),
        ),
        tracks=(("window evict",),),
    ),
    Mutant(
        "four-commands",
        "a turn goes into the window by four commands instead of one script",
        (
            Patch(
                "cache/threads.py",
                "        outcomes = await losable(self._link.run(self._extend, keys.all_of_thread(key), arguments),"
                " otherwise=None)\n",
                "        messages, head, *_ = keys.all_of_thread(key)\n"
                "        outcomes = None\n"
                "        try:\n"
                "            for kept, entries in turns:\n"
                "                for entry in entries:\n"
                "                    length = await self._link.call('RPUSH', messages, element(entry))\n"
                "                    await self._link.call('HSET', head, 'epoch', kept.epoch,"
                " 'first', entry.seq + 1 - length, 'next', entry.seq + 1, 'hw', entry.seq,"
                " 'bytes', 0, 'owner', kept.owner or '')\n"
                "            await self._link.call('PEXPIRE', messages, self._ttl_ms)\n"
                "            await self._link.call('PEXPIRE', head, self._ttl_ms)\n"
                "        except RedisUnavailable:\n"
                "            pass\n",
            ),
        ),
    ),
    # Guards of the protocol -------------------------------------------------------------------------------
    Mutant(
        "no-epoch",
        "a window of before an edit is taken for good",
        (Patch("recall.py", "head.epoch == copy.epoch and copy.next_seq", "copy.next_seq"),),
        tracks=_CUT_OFF,
        appetite=Appetite(appends=0.2, edits=0.25, deletions=0, journaled=0, fresh=0),
    ),
    Mutant(
        "no-purge",
        "windows of deleted conversations stay",
        (
            Patch(
                "purges.py",
                "        if not await self._cache.fence(",
                "        return\n        if not await self._cache.fence(",
            ),
            Patch(
                "purges.py",
                "        if generation != self._repeated_for:\n",
                "        return generation\n        if generation != self._repeated_for:\n",
            ),
        ),
        appetite=Appetite(deletions=0.1),
    ),
    Mutant(
        "no-waiting-check",
        "a turn does not ask whether others wait before it",
        (
            Patch(
                "appends.py",
                "            if count or (count is None and self._journal.holds(key)):\n",
                "            if False:\n",
            ),
        ),
        appetite=_WAITING,
    ),
    Mutant(
        "settle-before-commit",
        "what waits is taken out of the journal before it is in Postgres",
        (
            Patch(
                "journal.py",
                "            try:\n                drained = await self._store.drain(key, waiters)\n",
                "            try:\n"
                "                self._drop(key, [waiter.journaled.key for waiter in waiters])\n"
                "                await self._cache.settle(key, [waiter.journaled.key for waiter in waiters], {}, {})\n"
                "                drained = await self._store.drain(key, waiters)\n",
            ),
        ),
        tracks=(_POSTGRES_AWAY,),
        appetite=_WAITING,
    ),
    Mutant(
        "no-prevs",
        "what waits goes in without looking whether what stood before it is in",
        (
            Patch(
                "journal.py",
                "prevs = [journaled.prevs] if copy is None else [journaled.prevs, copy.journaled.prevs]",
                "prevs = [frozenset[str]()]",
            ),
            Patch(
                "journal.py",
                "Waiter(copy.journaled, [copy.journaled.prevs], overdue=",
                "Waiter(copy.journaled, [frozenset()], overdue=",
            ),
        ),
        tracks=_LOST_WHILE_WAITING,
        appetite=Appetite(appends=0.8, with_token=1.0, journaled=0.1, deletions=0),
        schedules_max=8,
    ),
    Mutant(
        "no-merge-rule",
        "what waits is shown although the window has it already",
        (
            Patch(
                "recall.py",
                "shown_before = {turn_id_of(entry.frame) for entry in base.entries}",
                "shown_before = set[str]()",
            ),
            Patch("recall.py", "    if known is None:\n        return True\n", "    return True\n"),
        ),
        tracks=(("redis delay", "redis answers held", "redis requests held"),),
        appetite=Appetite(journaled=0.4, deletions=0),
    ),
    Mutant(
        "no-worker-copy",
        "a turn that waits lies in Redis only",
        (
            Patch(
                "journal.py",
                "                    self._keep(replace(self._new(turn), prevs=put.prevs))\n",
                "",
            ),
        ),
        tracks=_LOST_WHILE_WAITING,
        appetite=_WAITING,
    ),
    Mutant(
        "after-ignored",
        "nobody looks whether the turn of after_token is there",
        (Patch(APPEND_SQL, "WHEN t.after IS NOT NULL AND NOT EXISTS (", "WHEN false AND NOT EXISTS ("),),
        tracks=_CUT_APART,
        appetite=Appetite(appends=0.8, with_token=1.0, journaled=0.5, deletions=0),
        schedules_max=8,
    ),
    Mutant(
        "blind-unmarked",
        "a turn that was numbered without asking the journal does not say so",
        (
            Patch(
                "appends.py",
                "chosen.append((place, replace(candidate, order_unverified=True)))",
                "chosen.append((place, candidate))",
            ),
        ),
        tracks=(("redis refuse", "redis hole"), ("postgres slow", "postgres stop")),
        appetite=Appetite(appends=0.8, with_token=0.0, journaled=0.3, deletions=0),
        schedules_max=8,
    ),
    Mutant(
        "waiting-expires",
        "what waits has a time to live",
        (Patch("cache/lua/journal.lua", "redis.call('PERSIST', KEYS[3])\n", "redis.call('PEXPIRE', KEYS[3], 86400000)\n"),),
        appetite=_WAITING,
    ),
    Mutant(
        "journaled-unheard",
        "a turn counts as journaled although Redis did not answer",
        (
            Patch(
                "journal.py",
                "                    if put is None:\n                        continue\n",
                "                    if put is None:\n                        return JournaledTurn(False, False)\n",
            ),
        ),
        tracks=(("redis requests held", "redis hole"), _POSTGRES_AWAY),
        appetite=_WAITING,
        schedules_max=16,
    ),
    Mutant(
        "orphans-forgotten",
        "nobody looks for what a worker left that died",
        (
            Patch(
                "journal.py",
                "        for shard in range(JOURNAL_SHARDS):\n",
                "        for shard in range(0):\n",
            ),
        ),
        tracks=(("worker kill", "all workers kill"), _POSTGRES_AWAY),
        # Conversations that nobody comes back to.
        appetite=Appetite(appends=0.2, fresh=0.5, journaled=0.6, deletions=0),
    ),
)
