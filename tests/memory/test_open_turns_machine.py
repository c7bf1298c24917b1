"""Open turns against a model: any history of openings, heartbeats and closings, over two workers."""

import uuid
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.memory.checker import check_window
from tests.memory.rooms import Memory, reason, seqs
from tests.memory.test_open_turns import (
    INTERRUPTED,
    TAKE_OVER,
    abort,
    begin,
    commit,
    end_lease,
    heartbeat,
    open_turn,
)
from twofold.memory.v1.turn_pb2 import TurnPolicy, TurnState
from twofold_memory.threads import ThreadKey

REJECT = TurnPolicy.TURN_POLICY_REJECT
NUMBER = st.integers(0, 10**6)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "begin",
                "begin",
                "take_over",
                "again",
                "heartbeat",
                "commit",
                "commit",
                "abort",
                "late",
                "repeat",
                "expire",
                "append",
            ]
        ),
        NUMBER,
    ),
    max_size=30,
)
Said = tuple[str, bool]


@dataclass
class Turn:
    """What a turn must be."""

    name: str
    fence: int
    partial: list[str] = field(default_factory=list)
    alive: bool = True
    # Once it is closed: where it stands, and how its holder closed it, if that was it.
    stands: tuple[int, int] = (0, 0)
    interrupted: bool = False
    closed_with: tuple[str, str] | None = None


class Machine:
    """Does a step at the service and in the model, and compares."""

    def __init__(self, rooms: tuple[Memory, Memory], sql: "asyncpg.Pool[Any]") -> None:
        self.rooms = rooms
        self.sql = sql
        self.key = ThreadKey("turn-machine", uuid.uuid4().hex)
        self.turns: list[Turn] = []
        self.open: Turn | None = None
        self.log: list[Said] = []
        self.calls = 0
        self.fences = 0

    @property
    def room(self) -> Memory:
        self.calls += 1
        return self.rooms[self.calls % 2]

    async def begin(self, number: int, policy: TurnPolicy.ValueType = REJECT) -> None:
        name = f"t{len(self.turns)}"
        if policy == REJECT and self.open is not None and self.open.alive:
            assert await why(begin(self.room, self.key, f"{name}-{self.calls}", policy=policy)) == "REASON_TURN_HELD"
            return
        begun = await begin(self.room, self.key, name, policy=policy)
        if self.open is not None:
            self.close(self.open, [(text, True) for text in self.open.partial], None)
            self.open.interrupted = True
        self.fences += 1
        assert (begun.fence, begun.duplicate) == (self.fences, False)
        self.open = Turn(name, begun.fence)
        self.turns.append(self.open)

    async def take_over(self, number: int) -> None:
        await self.begin(number, TAKE_OVER)

    async def again(self, number: int) -> None:
        if self.turns:
            turn = self.turns[number % len(self.turns)]
            begun = await begin(self.room, self.key, turn.name)
            assert begun.duplicate
            if turn is self.open and not turn.alive:
                self.fences += 1
                turn.fence, turn.alive = self.fences, True
            assert begun.fence == (turn.fence if turn is self.open else 0)
            assert (begun.first_seq, begun.last_seq) == turn.stands
            closed = TurnState.TURN_STATE_INTERRUPTED if turn.interrupted else TurnState.TURN_STATE_COMMITTED
            assert begun.state == (TurnState.TURN_STATE_OPEN if turn is self.open else closed)

    async def heartbeat(self, number: int) -> None:
        if self.open is not None:
            partial = [f"{self.open.name} so far {number}"] * (number % 3)
            await heartbeat(self.room, self.key, self.open.name, self.open.fence, *partial)
            self.open.partial = partial or self.open.partial
            self.open.alive = True

    async def commit(self, number: int) -> None:
        if self.open is not None:
            turn, text = self.open, f"{self.open.name} answer {number}"
            kept = await commit(self.room, self.key, turn.name, turn.fence, text)
            self.close(turn, [(text, False)], ("commit", text))
            assert (kept.first_seq, kept.last_seq, kept.duplicate) == (*turn.stands, False)
            self.open = None

    async def abort(self, number: int) -> None:
        if self.open is not None:
            turn, text = self.open, f"{self.open.name} partial {number}"
            given = [text] * (number % 2)
            kept = await abort(self.room, self.key, turn.name, turn.fence, *given)
            self.close(turn, [(said, True) for said in given or turn.partial], ("abort", text * (number % 2)))
            turn.interrupted = True
            assert (kept.first_seq, kept.last_seq, kept.duplicate) == (*turn.stands, False)
            self.open = None

    async def late(self, number: int) -> None:
        """M14: whoever does not hold the turn changes nothing."""
        if self.turns:
            turn = self.turns[number % len(self.turns)]
            fence = turn.fence + (1 if turn is self.open else 0)
            expected = "REASON_TURN_SUPERSEDED" if turn.closed_with is None else "REASON_REQUEST_REUSED"
            assert await why(commit(self.room, self.key, turn.name, fence, "late")) == expected
            assert await why(heartbeat(self.room, self.key, turn.name, fence, "late")) == "REASON_TURN_SUPERSEDED"

    async def repeat(self, number: int) -> None:
        if self.turns:
            turn = self.turns[number % len(self.turns)]
            if turn.closed_with is not None:
                how, text = turn.closed_with
                answer = (commit if how == "commit" else abort)(
                    self.room, self.key, turn.name, turn.fence, *[text] * bool(text)
                )
                kept = await answer
                assert (kept.first_seq, kept.last_seq, kept.duplicate) == (*turn.stands, True)

    async def expire(self, number: int) -> None:
        if self.open is not None:
            await end_lease(self.sql, self.key)
            self.open.alive = False

    async def append(self, number: int) -> None:
        text = f"append {len(self.log)}"
        assert (await self.room.append(self.key, text)).first_seq == len(self.log) + 1
        self.log.append((text, False))

    def close(self, turn: Turn, said: list[Said], closed_with: tuple[str, str] | None) -> None:
        turn.stands = len(self.log) + 1, len(self.log) + 1 + len(said)
        turn.closed_with = closed_with
        self.log += [(turn.name, False), *said]

    async def check(self) -> None:
        stored = await self.room.all_messages(self.key)
        assert [(message.content, message.status == INTERRUPTED) for message in stored] == self.log
        assert seqs(stored) == list(range(1, len(self.log) + 1))
        if self.open is not None:
            found = await open_turn(self.room, self.key)
            assert found.turn_id == self.open.name
            assert [message.content for message in found.partial_messages] == self.open.partial


async def why(refused: Awaitable[object]) -> str:
    try:
        await refused
    except grpc.aio.AioRpcError as error:
        return reason(error)
    return "not refused"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
async def test_open_turns_do_what_the_model_does(
    small_rooms: tuple[Memory, Memory],
    raw_redis: redis.asyncio.Redis,
    sql: "asyncpg.Pool[Any]",
    steps: list[tuple[str, int]],
) -> None:
    """M14, M1, M3, M4, M7."""
    machine = Machine(small_rooms, sql)
    await machine.append(0)
    for name, number in steps:
        await getattr(machine, name)(number)
        await check_window(raw_redis, sql, machine.key)
    await machine.check()
