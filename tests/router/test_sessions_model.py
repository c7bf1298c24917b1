"""The table of sessions against a model: pods that open, close, die and take over, and a Redis that forgets.

What is judged: no session is held by two living pods, each holder has a higher fence than all before, whoever holds it no
longer changes nothing, and once every living pod has announced what it holds, the table is exactly that.
"""

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twofold_chassis.redis import RedisLink
from twofold_chassis.settings import RedisSettings
from twofold_router import keys
from twofold_router.pods import Kept, Placed
from twofold_router.session_table import RedisTable
from twofold_router.sessions import Incarnation, PodLife, Session, SessionKey, Wanted

PODS = 3
STEPS = {
    "open": 4,
    "close": 2,
    "close_by_others": 1,
    "touch": 2,
    "give_up": 2,
    "take_over": 4,
    "die": 1,
    "sweep": 2,
    "lose": 1,
    "announce": 2,
    "late": 3,
}
Step = tuple[str, int]


class World:
    """Pods with what each thinks that it holds. A dead pod is another one when it comes back."""

    def __init__(self, link: RedisLink, table: RedisTable) -> None:
        self.link = link
        self.table = table
        self.ws = f"ws-{uuid.uuid4().hex}"
        self.lives = [PodLife(f"gate-{number}", Incarnation(1, number + 1)) for number in range(PODS)]
        self.held: dict[PodLife, dict[str, Session]] = {life: {} for life in self.lives}
        self.dead: list[tuple[PodLife, list[Session]]] = []
        self.former: list[Session] = []
        self.fences: dict[str, int] = {}
        self.owners: dict[str, str] = {}
        self.count = 0

    def pod(self, number: int) -> PodLife:
        return self.lives[number % PODS]

    def one_of(self, life: PodLife, number: int) -> Session | None:
        held = sorted(self.held[life].values())
        return held[number % len(held)] if held else None

    async def generation(self) -> str:
        return (await self.table.news(self.ws, 0)).generation

    async def placed(self, session: Session, *, take_over: bool) -> Placed:
        return await self.table.open(await self.generation(), session, take_over=take_over, per_user_max=1000)

    def holds(self, session: Session, placed: Placed) -> None:
        session_id = session.key.session_id
        assert placed.fence > self.fences.get(session_id, 0)
        self.fences[session_id] = placed.fence
        self.owners.setdefault(session_id, session.user_id)
        self.held[session.life][session_id] = session._replace(fence=placed.fence, opened_ms=placed.opened_ms)
        holders = [life for life, held in self.held.items() if session_id in held]
        assert holders == [session.life]

    def drops(self, session: Session) -> None:
        del self.held[session.life][session.key.session_id]
        self.former.append(session)

    # Steps -----------------------------------------------------------------------------------------------------

    async def open(self, number: int) -> None:
        self.count += 1
        key = SessionKey(self.ws, f"s-{self.count}")
        session = Session(key, f"user-{number % 2}", "agent", self.pod(number), self.count, self.count, self.count)
        placed = await self.placed(session, take_over=False)
        self.holds(session, placed)
        assert (await self.placed(session, take_over=False)).fence == placed.fence  # a repeat

    async def close(self, number: int) -> None:
        session = self.one_of(self.pod(number), number)
        if session is not None:
            self.drops(session)
            await self.table.close(session, by_others=False)

    async def close_by_others(self, number: int) -> None:
        """Its pod does not hear of it."""
        session = self.one_of(self.pod(number), number)
        if session is not None:
            await self.table.close(session, by_others=True)

    async def touch(self, number: int) -> None:
        session = self.one_of(self.pod(number), number)
        if session is not None and await self.table.touch(await self.generation(), session, number) is Kept.LOST:
            self.drops(session)

    async def give_up(self, number: int) -> None:
        session = self.one_of(self.pod(number), number)
        if session is not None:
            self.drops(session)
            if not await self.table.give_up(session):
                await self.table.close(session, by_others=False)

    async def take_over(self, number: int) -> None:
        life = self.pod(number)
        if not self.fences:
            return
        session_id = sorted(self.fences)[number % len(self.fences)]
        if session_id in self.held[life]:
            return
        for user_id in ("user-0", "user-1", "nobody"):
            session = Session(SessionKey(self.ws, session_id), user_id, "agent", life, 1, 1, 1)
            placed = await self.placed(session, take_over=True)
            if placed.refusal is None:
                assert user_id == self.owners[session_id]
                self.holds(session, placed)
                return

    async def die(self, number: int) -> None:
        life = self.pod(number)
        held = list(self.held.pop(life).values())
        self.dead.append((life, held))
        self.former += held
        again = PodLife(life.pod_id, Incarnation(1, life.incarnation.number + PODS))
        self.lives[number % PODS] = again
        self.held[again] = {}

    async def sweep(self, number: int) -> None:
        """Behind the verdict: what it held may be taken over."""
        if self.dead:
            life, _ = self.dead.pop(number % len(self.dead))
            after = ""
            while True:
                sessions, after = await self.table.of_life(self.ws, life, after)
                for session in sessions:
                    assert session.life == life
                    await self.table.end(session)
                if not after:
                    return

    async def lose(self, _: int) -> None:
        names = [name async for name in _names(self.link, self.ws)]
        if names:
            await self.link.call("DEL", *names)

    async def announce(self, number: int) -> None:
        life = self.pod(number)
        generation = await self.generation()
        for session in list(self.held[life].values()):
            kept = await self.table.announce(generation, session)
            assert kept is not Kept.ANEW
            if kept is Kept.LOST:
                self.drops(session)

    async def late(self, number: int) -> None:
        """Who holds it no longer says something all the same."""
        if self.former:
            session = self.former[number % len(self.former)]
            before = await self.listed()
            if session.life in self.held:  # else it may be that nobody has cleared up after it yet
                assert await self.table.touch(await self.generation(), session, 1) is not Kept.KEPT
                assert not await self.table.give_up(session)
            await self.table.close(session, by_others=False)
            assert before - {(session.key.session_id, session.life, session.fence)} <= await self.listed()

    # What there is ---------------------------------------------------------------------------------------------

    async def listed(self) -> set[tuple[str, PodLife, int]]:
        sessions, after = await self.table.scan(Wanted(self.ws), "", 500)
        assert not after
        return {(one.key.session_id, one.life, one.fence) for one in sessions}

    async def heal(self) -> None:
        while self.dead:
            await self.sweep(0)
        for number in range(PODS):
            await self.announce(number)
        expected = {(one.key.session_id, life, one.fence) for life, held in self.held.items() for one in held.values()}
        assert await self.listed() == expected
        generation = await self.generation()
        assert await self.link.call("ZCARD", keys.all_sessions(self.ws, generation)) == len(expected)
        for user_id in ("user-0", "user-1"):
            found, _ = await self.table.scan(Wanted(self.ws, user_id=user_id), "", 500)
            owned = {one.key.session_id for held in self.held.values() for one in held.values() if one.user_id == user_id}
            assert {one.key.session_id for one in found} == owned
            assert await self.link.call("ZCARD", keys.user_sessions(self.ws, generation, user_id)) == len(owned)
        await self.lose(0)


async def _names(link: RedisLink, ws: str) -> Any:
    cursor: Any = 0
    while True:
        cursor, names = await link.call("SCAN", cursor, "MATCH", f"s:{{{ws}}}:*", "COUNT", 1000)
        for name in names:
            yield name
        if int(cursor) == 0:
            return


async def played(link: RedisLink, steps: list[Step]) -> None:
    world = World(link, RedisTable(link, lease_s=0))
    for name, number in steps:
        step: Callable[[int], Awaitable[None]] = getattr(world, name)
        await step(number)
    await world.heal()


Play = Callable[[list[Step]], None]


@pytest.fixture
def play(redis_settings: RedisSettings) -> Play:
    """Plays steps in a loop of its own: those of Hypothesis are not coroutines."""

    def run(steps: list[Step]) -> None:
        async def all_of_it() -> None:
            link = RedisLink(redis_settings)
            try:
                await played(link, steps)
            finally:
                await link.close()

        asyncio.run(all_of_it())

    return run


STEP = st.tuples(
    st.sampled_from([name for name, often in STEPS.items() for _ in range(often)]), st.integers(min_value=0, max_value=40)
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=60))
def test_c10_whatever_happens_a_session_has_one_holder_and_the_table_is_what_living_pods_hold(
    play: Play, steps: list[Step]
) -> None:
    play(steps)


async def test_c10_long_lives_of_sessions(redis_settings: RedisSettings) -> None:
    drawn = random.Random(11)
    names = [name for name, often in STEPS.items() for _ in range(often)]
    link = RedisLink(redis_settings)
    for _ in range(15):
        await played(link, [(drawn.choice(names), drawn.randrange(40)) for _ in range(200)])
    await link.close()
