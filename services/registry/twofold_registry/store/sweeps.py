"""What is swept in Postgres, as the system role: sweeps are of no tenant."""

from twofold_chassis import postgres
from twofold_chassis.postgres import Pool
from twofold_chassis.requests import Requests
from twofold_registry.store.statements import STATEMENTS
from twofold_registry.sweeps import Sweep, SweepSettings

_SELDOM = 30
"""Rounds between those that look at each workspace."""


def postgres_sweeps(system: Pool, settings: SweepSettings, requests: Requests) -> list[Sweep]:
    """All sweeps, each in transactions of its own."""

    def sweep(what: str, text: str, *values: object, every: int = 1) -> Sweep:
        async def run(most: int) -> int:
            async with postgres.transaction(system) as connection:
                count: int = await connection.fetchval(text, most, *values)
            return count

        return Sweep(what, run, every)

    async def forget_answers(most: int) -> int:
        async with postgres.transaction(system) as connection:
            told = await connection.execute(requests.statements["forget_answers"], most)
        return int(told.rpartition(" ")[2])  # "DELETE 17"

    return [
        Sweep("answers", forget_answers),
        sweep("changes", STATEMENTS["compact_changes"], settings.changes_kept_s),
        sweep("watchers", STATEMENTS["forget_watchers"]),
        sweep("sessions", STATEMENTS["forget_sessions"], settings.sessions_kept_days),
        sweep(
            "sessions_by_retention",
            STATEMENTS["forget_sessions_by_retention"],
            settings.sessions_kept_days,
            every=_SELDOM,
        ),
        sweep("silent_pods", STATEMENTS["give_up_silent_pods"], settings.pods_kept_days),
        sweep("dead_pods", STATEMENTS["forget_pods"], settings.pods_kept_days),
    ]
