"""The bugs that are planted: flaws of the textbook, and guards of the protocol that are dropped, one at a time."""

from dataclasses import dataclass, field

from benchmarks.chaos.clients import Appetite

_JOURNAL_SQL = "migrations/versions/0002_journal.sql"
_FIRST_SQL = "migrations/versions/0001_conversations.sql"

_RETRIES = Appetite(repeats=0.4, appends=0.35, deletions=0)
_LINKS = ("redis swallow", "redis answers held", "redis hole", "redis refuse")
_CRASHES = ("postgres kill", "postgres immediate")


@dataclass(frozen=True, slots=True)
class Patch:
    """Text that stands in a file of the service exactly once, and what stands there instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug and the schedules it is tried under: `faults` one after the other, or all that `kind` has."""

    name: str
    flaw: str
    patches: tuple[Patch, ...]
    faults: tuple[str, ...] = ()
    kind: str = "calm"
    gap_s: float = 0.2
    appetite: Appetite = field(default_factory=Appetite)
    schedules_max: int = 4


MUTANTS = (
    Mutant("none", "nothing: the service as it is", (), kind="link", schedules_max=2),
    # Flaws of the textbook --------------------------------------------------------------------------------
    Mutant(
        "ack-before-durable",
        "acknowledges before the commit is on disk",
        (
            Patch(
                _JOURNAL_SQL,
                "    IF true = ANY (t_new) THEN\n",
                "    PERFORM set_config('synchronous_commit', 'off', true);\n    IF true = ANY (t_new) THEN\n",
            ),
        ),
        faults=_CRASHES,
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
                _JOURNAL_SQL,
                "WHERE k.workspace_id = t.workspace_id AND k.thread_id = t.thread_id AND k.turn_id = t.turn_id\n",
                "WHERE false\n",
            ),
        ),
        appetite=_RETRIES,
    ),
    Mutant(
        "no-payload-hash",
        "another payload under the same id is acknowledged as a repeat",
        (Patch(_JOURNAL_SQL, "WHEN k.payload_hash = t.payload_hash THEN", "WHEN k.turn_id IS NOT NULL THEN"),),
        appetite=_RETRIES,
    ),
    Mutant(
        "get-then-create",
        "looks whether there is a conversation, and makes one some milliseconds later",
        (
            Patch(
                _JOURNAL_SQL,
                "        WHERE t.is_new\n",
                "        WHERE t.is_new AND NOT EXISTS (SELECT FROM memory.conversations c"
                " WHERE c.workspace_id = t.workspace_id AND c.thread_id = t.thread_id)"
                " AND pg_sleep(0.005)::text IS NOT NULL\n",
            ),
            Patch(
                _JOURNAL_SQL,
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
                _JOURNAL_SQL,
                "CREATE FUNCTION memory.append_turns(",
                "CREATE SEQUENCE memory.serial INCREMENT 10;\nGRANT USAGE ON SEQUENCE memory.serial TO PUBLIC;\n"
                "CREATE FUNCTION memory.append_turns(",
            ),
            Patch(
                _JOURNAL_SQL,
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
        (Patch(_JOURNAL_SQL, "        LIMIT 1\n        FOR UPDATE\n", "        LIMIT 1\n"),),
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
        faults=_LINKS,
        appetite=Appetite(deletions=0.03),
    ),
)
