"""Counters in Redis: one script counts in all meters of an operation, and only where the counters are complete."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

from twofold_chassis.redis import RUN_ID, Argument, RedisLink, RedisNotAsked, RedisUnavailable, Reply, Script
from twofold_chassis.refusals import RequestReused
from twofold_router import keys
from twofold_router.limits import (
    METERS,
    Cost,
    CountersAway,
    CountersLost,
    Mark,
    Operation,
    Outcome,
    Settled,
    Subject,
    Tally,
)
from twofold_router.permissions import PairKey
from twofold_router.rebuilds import Begun, Counter
from twofold_router.terms import Limit

_COUNT = Script.load("twofold_router.lua", "count_operation")
_SETTLE = Script.load("twofold_router.lua", "settle_operation")
_BEGIN = Script.load("twofold_router.lua", "begin_rebuild")
_COMMIT = Script.load("twofold_router.lua", "commit_rebuild")
_CLAIM_MS = 10_000
_WRITES_AT_ONCE = 200
_GENERATIONS_MAX = 100_000
_KEYS = {Subject.USER: 3, Subject.AGENT: 4, Subject.WORKSPACE: 5}
_NO_LIMIT = (0, 0)
_OUTCOMES = {b"COUNTED": Outcome.COUNTED, b"REFUSED": Outcome.REFUSED, b"PEEKED": Outcome.PEEKED}
# Of each meter what the scripts are told first, and where its cost stands.
_TOLD = [
    (kind, (_KEYS[meter.subject], meter.name, meter.span_s * 1000), Cost._fields.index(meter.unit))
    for kind, meter in METERS.items()
]


class RedisCounters:
    """Counters of all workspaces. `cells`: into how many a span is cut; `now_ms`: what scripts are told of the time."""

    def __init__(self, link: RedisLink, *, cells: int, now_ms: Callable[[], int | str] = lambda: "") -> None:
        self._link = link
        self._cells = cells
        self.now_ms = now_ms
        # Which generation counts, as far as is known here: the script tells if another one does.
        self._generations: OrderedDict[str, str] = OrderedDict()

    async def count(self, operation: Operation, limits: Sequence[Limit], *, peeks: bool = False) -> Tally:
        arguments = (
            _body(operation),
            "PEEK" if peeks else "COUNT",
            self.now_ms(),
            keys.OPERATION_TTL_MS,
            keys.MARKER_TTL_MS,
            _metered(operation.cost, tuple(limits)),
        )
        reply = await self._run(_COUNT, operation, arguments)
        if reply[0] == b"DUPLICATE":
            return _first_tally(reply[1])
        outcome, now, *told = reply
        marks = [Mark(*told[place : place + 3]) for place in range(0, len(told), 3)]
        return Tally(_OUTCOMES[outcome], now, marks)

    async def settle(self, operation: Operation, at_s: float | None) -> Settled:
        reply = await self._change(operation, "SETTLE", at_s)
        return Settled(reply[0] == b"DUPLICATE", int(reply[1]) / 1000)

    async def add(self, operation: Operation, at_s: float) -> None:
        await self._change(operation, "ADD", at_s)

    async def release(self, operation: Operation) -> None:
        await self._change(operation, "RELEASE", None)

    async def _change(self, operation: Operation, how: str, at_s: float | None) -> Reply:
        at_ms = "" if at_s is None else round(at_s * 1000)
        costs: list[Argument] = []
        for _, told, place in _TOLD:
            costs += (*told, operation.cost[place])
        ends = (keys.OPERATION_TTL_MS, keys.MARKER_TTL_MS)
        return await self._run(_SETTLE, operation, [_body(operation), how, self.now_ms(), at_ms, *ends, *costs])

    async def _run(self, script: Script, operation: Operation, arguments: Sequence[Argument]) -> Reply:
        (workspace_id, user_id, agent_id), operation_id, _ = operation
        generation = self._generations.get(workspace_id, "")
        for _ in range(2):
            names = keys.counting(workspace_id, generation, user_id, agent_id, operation_id)
            reply = await _away(self._link.run(script, names, (RUN_ID, self._cells, generation, *arguments)))
            if reply[0] == b"MISMATCH":
                raise RequestReused("this operation_id was used for something else", operation_id=operation_id)
            if reply[0] != b"OTHER":
                break
            generation = reply[1].decode()
            self._learn(workspace_id, generation)
        if reply[0] in (b"LOST", b"OTHER"):
            raise CountersLost
        return reply

    def _learn(self, workspace_id: str, generation: str) -> None:
        self._generations[workspace_id] = generation
        self._generations.move_to_end(workspace_id)
        if len(self._generations) > _GENERATIONS_MAX:
            self._generations.popitem(last=False)


def own_clock() -> Callable[[], int]:
    """This machine's clock in milliseconds, where scripts may not ask for the time: it never goes back."""
    newest_ms = 0

    def now_ms() -> int:
        nonlocal newest_ms
        newest_ms = max(newest_ms, time.time_ns() // 1_000_000)
        return newest_ms

    return now_ms


class RedisFilling:
    """Writes what is known of a workspace's use, for those who set its counters up anew."""

    def __init__(self, link: RedisLink, counters: RedisCounters, *, cells: int) -> None:
        self._link = link
        self._counters = counters
        self._cells = cells

    async def begin(self, workspace_id: str, generation: str, *, keeps: bool = False) -> float | Begun:
        arguments = (
            RUN_ID,
            self._cells,
            generation,
            _CLAIM_MS,
            self._counters.now_ms(),
            "KEEP" if keeps else "BEGIN",
        )
        reply = await _away(self._link.run(_BEGIN, [keys.marker(workspace_id)], arguments))
        if reply[0] == b"BEGUN":
            return int(reply[1]) / 1000
        return Begun.COMPLETE if reply[0] == b"COMPLETE" else Begun.CLAIMED

    async def fill(
        self, workspace_id: str, generation: str, counters: Sequence[Counter], operations: Mapping[str, float]
    ) -> None:
        writes: list[tuple[Argument, ...]] = []
        for subject_id, meter, cells in counters:
            key = _counters_key(workspace_id, generation, meter.subject, subject_id)
            told = " ".join(f"{number}:{cells[number]}" for number in sorted(cells, reverse=True))
            writes += [("HSET", key, meter.name, told), ("PEXPIRE", key, 2 * _LONGEST_MS[meter.subject])]
        for operation_id, at_s in operations.items():
            key = keys.operation(workspace_id, generation, operation_id)
            writes.append(("SET", key, f"S - {round(at_s * 1000)}", "PX", keys.OPERATION_TTL_MS))
        for place in range(0, len(writes), _WRITES_AT_ONCE):
            await asyncio.gather(*(_away(self._link.call(*write)) for write in writes[place : place + _WRITES_AT_ONCE]))

    async def commit(self, workspace_id: str, generation: str) -> bool:
        arguments = (RUN_ID, self._cells, generation, keys.MARKER_TTL_MS)
        return bool(await _away(self._link.run(_COMMIT, [keys.marker(workspace_id)], arguments)))


_LONGEST_MS = {
    subject: max(meter.span_s * 1000 for meter in METERS.values() if meter.subject is subject) for subject in Subject
}


def _counters_key(workspace_id: str, generation: str, subject: Subject, subject_id: str) -> str:
    if subject is Subject.USER:
        return keys.user_counters(workspace_id, generation, subject_id)
    if subject is Subject.AGENT:
        return keys.agent_counters(workspace_id, generation, subject_id)
    return keys.workspace_counters(workspace_id, generation)


async def _away(reply: Awaitable[Reply]) -> Reply:
    try:
        return await reply
    except RedisNotAsked:
        raise CountersAway(asked=False) from None
    except RedisUnavailable:
        raise CountersAway(asked=True) from None


@lru_cache(maxsize=4096)  # of few plans, and mostly of one message
def _metered(cost: Cost, limits: tuple[Limit, ...]) -> str:
    amounts = {limit.kind: (limit.amount, int(limit.is_shadow)) for limit in limits}
    metered: list[Argument] = []
    for kind, told, place in _TOLD:
        amount, shadow = amounts.get(kind, _NO_LIMIT)
        metered += (*told, amount, cost[place], shadow)
    return " ".join(map(str, metered))


def _body(operation: Operation) -> str:
    """Whose operation it is, and what it costs: a repeat says the same."""
    return f"{_whose(operation.pair)}/{','.join(map(str, operation.cost))}"


@lru_cache(maxsize=4096)
def _whose(pair: PairKey) -> str:
    told = f"{pair.user_id}\0{pair.agent_id}".encode()  # no id holds a NUL
    return blake2b(told, digest_size=12).hexdigest()


def _first_tally(record: bytes) -> Tally:
    """As it was answered the first time; nothing more is known of one that the registry told of."""
    _, _, at_ms, *told = record.split()
    marks = [Mark(int(used), int(retry), int(free)) for _, _, used, retry, free in (mark.split(b":") for mark in told)]
    return Tally(Outcome.DUPLICATE, int(at_ms), marks or [Mark(0, 0, 0)] * len(METERS))
