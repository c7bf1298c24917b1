"""Which of the turns that wait for Postgres may go in now, and in which order. Pure.

A turn goes in only when everything that waited when it was journaled is in: so the order depends neither on clocks, nor on
who drains, nor on where the turns lie in a list that may have been lost and put back.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from twofold_memory.journaled import EntryKey, Journaled
from twofold_memory.threads import KeptTurn, Refused


@dataclass(frozen=True, slots=True)
class Waiter:
    """A turn that waits, with the sets of turns of which either must be in before it.

    A copy that was journaled again after a loss may name others than the entry in the list: either suffices.
    """

    journaled: Journaled
    prevs: Sequence[frozenset[str]]
    # It has waited for so long that what it waits for must be lost.
    overdue: bool = False


@dataclass(slots=True)
class Plan:
    """What is to be done in one transaction. `insert` is in the order of their numbers; the flag: its order is not sure."""

    found: list[Journaled] = field(default_factory=list)
    conflicts: list[Journaled] = field(default_factory=list)
    insert: list[tuple[Journaled, bool]] = field(default_factory=list)
    held: list[Journaled] = field(default_factory=list)


def plan(waiters: Sequence[Waiter], stored: Mapping[str, bytes]) -> Plan:
    """Decides on a thread's waiting turns. `stored`: the payload hashes of turns that are in Postgres, dead ones too."""
    known = dict(stored)
    made = Plan()
    left = list(waiters)
    while left:
        ready = [waiter for waiter in left if _judge(waiter, known, made)]
        if ready:
            left = [waiter for waiter in left if waiter not in ready]
            continue
        released = _released(left, known)
        if released is None:
            break
        left.remove(released)
        made.insert.append((released.journaled, True))
        known[released.journaled.turn.turn_id] = released.journaled.turn.payload_hash
    made.held = [waiter.journaled for waiter in left]
    return made


def _judge(waiter: Waiter, known: dict[str, bytes], made: Plan) -> bool:
    """Whether it can be decided on now; if so, it has been."""
    journaled = waiter.journaled
    stored_hash = known.get(journaled.turn.turn_id)
    if stored_hash is not None:
        (made.found if stored_hash == journaled.turn.payload_hash else made.conflicts).append(journaled)
    elif any(prevs <= known.keys() for prevs in waiter.prevs):
        made.insert.append((journaled, False))
        known[journaled.turn.turn_id] = journaled.turn.payload_hash
    else:
        return False
    return True


def _released(held: Sequence[Waiter], known: Mapping[str, bytes]) -> Waiter | None:
    """The first overdue one whose missing predecessors are nowhere in sight; if all wait for each other, the first."""
    in_sight = {waiter.journaled.turn.turn_id for waiter in held}
    for waiter in held:
        if waiter.overdue and any(not (prevs - known.keys()) & in_sight for prevs in waiter.prevs):
            return waiter
    return held[0] if all(waiter.overdue for waiter in held) else None


@dataclass(slots=True)
class Drained:
    """What a transaction did: the numbers of what is stored now, who is refused for ever, who still waits."""

    stored: dict[EntryKey, KeptTurn] = field(default_factory=dict)
    refused: dict[EntryKey, Refused] = field(default_factory=dict)
    held: Set[EntryKey] = frozenset()
    inserted: Set[EntryKey] = frozenset()
