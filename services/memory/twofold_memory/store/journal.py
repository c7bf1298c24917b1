"""The way of journaled turns into Postgres."""

from collections.abc import Sequence
from dataclasses import replace

from twofold_chassis import postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_memory.draining import Drained, Waiter, plan
from twofold_memory.journaled import Journaled, payload
from twofold_memory.store.statements import STATEMENTS
from twofold_memory.store.turns import UNFIT, append
from twofold_memory.threads import Candidate, KeptTurn, Known, Refused, ThreadKey

_BURIED: dict[str, Refused] = {"DELETED": "DELETED", "FOREIGN": "FOREIGN"}


class _Unfit(Exception):  # noqa: N818  (a state, not an error)
    """Postgres refuses to hold a turn, or one of those that were to be stored with it."""

    def __init__(self, journaled: Journaled, sqlstate: str) -> None:
        super().__init__("a value cannot be stored")
        self.journaled = journaled
        self.sqlstate = sqlstate


class PostgresJournal:
    """The truth about what has become of journaled turns."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def known(self, key: ThreadKey, turn_ids: Sequence[str]) -> dict[str, Known]:
        """Those of the turns that Postgres knows."""
        async with postgres.connection(self._pool) as connection:
            return await _known(connection, key, turn_ids)

    async def drain(self, key: ThreadKey, waiters: Sequence[Waiter]) -> Drained:
        """Stores what may go in now, in one transaction; a turn that Postgres refuses to hold becomes a dead letter.

        Raises Busy, Overloaded, StoreUnavailable: then nothing is known, and the same can be tried again.
        """
        try:
            return await self._drain(key, waiters)
        except _Unfit:
            # One of them is to blame: one at a time, in the same order, so that the others can go on.
            return await self._one_by_one(key, waiters)

    async def _one_by_one(self, key: ThreadKey, waiters: Sequence[Waiter]) -> Drained:
        drained, left = Drained(), waiters
        while left:
            one = await self._first(key, left)
            drained.stored |= one.stored
            drained.refused |= one.refused
            drained.inserted |= one.inserted
            if not one.stored and not one.refused:
                break
            left = [waiter for waiter in left if waiter.journaled.key not in one.stored.keys() | one.refused.keys()]
        drained.held = {waiter.journaled.key for waiter in left}
        return drained

    async def _first(self, key: ThreadKey, waiters: Sequence[Waiter]) -> Drained:
        try:
            return await self._drain(key, waiters, insert_max=1)
        except _Unfit as unfit:
            return await self._bury(key, unfit.journaled, unfit.sqlstate)

    async def _drain(self, key: ThreadKey, waiters: Sequence[Waiter], *, insert_max: int | None = None) -> Drained:
        async with postgres.transaction(self._pool) as connection:
            await connection.execute(STATEMENTS["make_conversation"], *key, waiters[0].journaled.turn.user_id)
            thread = await connection.fetchrow(STATEMENTS["lock_for_drain"], *key)
            assert thread is not None
            if thread["erased"]:
                return Drained(refused={waiter.journaled.key: "ERASED" for waiter in waiters})
            # After the lock, in a statement of its own: a snapshot from before would not see what the lock's holder stored.
            ids = {turn_id for waiter in waiters for prevs in waiter.prevs for turn_id in prevs}
            ids |= {waiter.journaled.turn.turn_id for waiter in waiters}
            known = await _known(connection, key, sorted(ids))
            made = plan(waiters, {turn_id: turn.payload_hash for turn_id, turn in known.items()})
            drained = Drained(held={journaled.key for journaled in made.held})
            await _insert(connection, made.insert[:insert_max], thread["epoch"], drained)
            for journaled in made.found:
                found = known.get(journaled.turn.turn_id)
                if found is None or found.dead:
                    drained.refused[journaled.key] = "INVALID"
                else:
                    drained.stored[journaled.key] = KeptTurn(
                        found.first_seq,
                        found.last_seq,
                        thread["epoch"],
                        found.created_at,
                        thread["user_id"],
                        duplicate=True,
                        order_unverified=found.order_unverified,
                    )
            for journaled in made.conflicts:
                await _keep_dead_letter(connection, journaled, "KEY_CONFLICT", "")
                drained.refused[journaled.key] = "KEY_CONFLICT"
        return drained

    async def _bury(self, key: ThreadKey, journaled: Journaled, sqlstate: str) -> Drained:
        """Makes a turn that cannot be stored a dead letter; another payload may have been stored under its id meanwhile."""
        reason: Refused = "INVALID"
        async with postgres.transaction(self._pool) as connection:
            thread = await connection.fetchrow(STATEMENTS["lock_for_drain"], *key)
            known = await _known(connection, key, [journaled.turn.turn_id])
            if thread is None:
                await connection.execute(STATEMENTS["make_conversation"], *key, journaled.turn.user_id)
            elif thread["erased"]:
                return Drained(refused={journaled.key: "ERASED"})
            if journaled.turn.turn_id in known:
                reason = "KEY_CONFLICT"
            else:
                await _bury(connection, journaled, thread["epoch"] if thread else 1)
            await _keep_dead_letter(connection, journaled, reason, sqlstate)
        return Drained(refused={journaled.key: reason})


async def _known(connection: Connection, key: ThreadKey, turn_ids: Sequence[str]) -> dict[str, Known]:
    rows = await connection.fetch(STATEMENTS["known_turns"], *key, turn_ids)
    return {row["turn_id"]: Known(*tuple(row)[1:]) for row in rows}


async def _insert(connection: Connection, chosen: Sequence[tuple[Journaled, bool]], epoch: int, drained: Drained) -> None:
    """Stores what may go in; what the conversation does not take becomes a dead letter. Raises _Unfit."""
    if not chosen:
        return
    # Its `after` is among its prevs, and may go in with this very statement, which would not see it.
    candidates = [Candidate(replace(journaled.turn, after=None), False, unverified) for journaled, unverified in chosen]
    try:
        answers = await append(connection, candidates)
    except UNFIT as error:
        raise _Unfit(chosen[0][0], error.sqlstate or "") from None
    inserted = set()
    for (journaled, _), answer in zip(chosen, answers, strict=True):
        if answer.turn is not None:
            drained.stored[journaled.key] = answer.turn
            if answer.outcome == "STORED":
                inserted.add(journaled.key)
        else:
            reason = _BURIED[answer.outcome]
            await _bury(connection, journaled, epoch)
            await _keep_dead_letter(connection, journaled, reason, "")
            drained.refused[journaled.key] = reason
    drained.inserted = inserted


async def _bury(connection: Connection, journaled: Journaled, epoch: int) -> None:
    turn = journaled.turn
    await connection.execute(STATEMENTS["bury_turn"], *turn.key, turn.turn_id, turn.payload_hash, epoch)


async def _keep_dead_letter(connection: Connection, journaled: Journaled, reason: Refused, sqlstate: str) -> None:
    turn = journaled.turn
    await connection.execute(
        STATEMENTS["keep_dead_letter"], *turn.key, turn.turn_id, turn.payload_hash, reason, sqlstate, payload(turn)
    )
