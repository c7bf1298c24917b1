"""Pods in Postgres, which outlasts Redis. They belong to no tenant."""

from collections.abc import Sequence

import structlog
from asyncpg import Record

from twofold_chassis import call, postgres
from twofold_chassis.postgres import Connection, Pool
from twofold_chassis.refusals import InvalidField
from twofold_chassis.requests import Attempt, Requests
from twofold_registry.pods import Answer, Incarnation, Pod, PodKey, PodState
from twofold_registry.resources import Page
from twofold_registry.store import rows
from twofold_registry.store.reads import read_head
from twofold_registry.store.statements import STATEMENTS


class PostgresPods:
    """The truth about pods."""

    def __init__(self, system: Pool, requests: Requests) -> None:
        self._system = system
        self._requests = requests
        self._logger = structlog.get_logger("twofold.pods")

    async def register(self, pod_id: str, address: str, attempt: Attempt, answer: Answer) -> bytes:
        async with postgres.transaction(self._system) as connection:

            async def make() -> bytes:
                row = await connection.fetchrow(STATEMENTS["register_pod"], pod_id, address, await _epoch(connection))
                assert row is not None
                return answer(_incarnation(row))

            return await self._requests.once(connection, attempt, make)

    async def check(self, keys: Sequence[PodKey]) -> list[PodState]:
        async with postgres.connection(self._system) as connection:
            found = await connection.fetch(STATEMENTS["get_pods"], [key.pod_id for key in keys])
            if any(row["unseen"] for row in found):
                await connection.execute(STATEMENTS["pods_are_seen"], *_columns(keys))
        pods = {row["pod_id"]: _pod(row) for row in found}
        return [pods[key.pod_id].judge(key.incarnation) if key.pod_id in pods else PodState.UNKNOWN for key in keys]

    async def mark_dead(self, key: PodKey, reason: str) -> bool:
        marked_by = call.current().identity.actor
        async with postgres.transaction(self._system) as connection:
            newest = Incarnation(await _epoch(connection), await connection.fetchval(STATEMENTS["newest_number"]))
            if key.incarnation > newest:
                raise InvalidField("incarnation", "was never given to a pod")
            values = (key.pod_id, *key.incarnation, reason, marked_by)
            marked = bool(await connection.fetchval(STATEMENTS["mark_pod_dead"], *values))
        if marked:
            told = f"{key.incarnation.epoch}.{key.incarnation.number}"
            self._logger.warning("pod is dead", pod_id=key.pod_id, incarnation=told, reason=reason, marked_by=marked_by)
        return marked

    async def list(self, state: PodState | None, after: str, size: int) -> Page[Pod]:
        async with postgres.connection(self._system) as connection:
            found = await connection.fetch(STATEMENTS["list_pods"], after, state and state.value, size + 1)
        return rows.page([_pod(row) for row in found], size)


async def _epoch(connection: Connection) -> int:
    """The epoch of this history; a new one if the past was rewritten, so that no incarnation is given twice."""
    try:
        return (await read_head(connection)).epoch
    except rows.PastRewritten:
        await connection.execute(STATEMENTS["renew_epoch"])
        return (await read_head(connection)).epoch


def _columns(keys: Sequence[PodKey]) -> tuple[list[str], list[int], list[int]]:
    return (
        [key.pod_id for key in keys],
        [key.incarnation.epoch for key in keys],
        [key.incarnation.number for key in keys],
    )


def _incarnation(row: Record) -> Incarnation:
    return Incarnation(row["epoch"], row["number"])


def _pod(row: Record) -> Pod:
    return Pod(
        pod_id=row["pod_id"],
        address=row["address"],
        incarnation=_incarnation(row),
        state=PodState(row["state"]),
        registered_at=row["registered_at"],
        dead_at=row["dead_at"],
        dead_reason=row["dead_reason"],
        marked_by=row["marked_by"],
    )
