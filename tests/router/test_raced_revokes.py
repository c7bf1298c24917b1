"""Revokes raced by callers: many pairs at once, at two routers, with and without waiting for these.

REVOKES=10000 pytest tests/router/test_raced_revokes.py    # the long run; the suite has a short one
"""

import asyncio
import os
import random

import grpc
import pytest

from tests.router.conftest import Client
from tests.router.test_revocation import LEASE_S, MARGIN_S, WAIT_S, House, Seen, known, see
from tests.router.test_revocation import house as house  # a fixture
from twofold.registry.v1 import permission_pb2
from twofold_chassis.clocks import boot_s

REVOKES = int(os.environ.get("REVOKES", "60"))
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
PAIRS = 20
CALLERS = 2


async def revoked(house: House, user_id: str, *, wait: bool) -> float:
    """From when on nobody may be let through."""
    request = permission_pb2.RevokeRequest(workspace_id=house.ws, user_id=user_id, agent_id="agent")
    request.wait = permission_pb2.REVOKE_WAIT_ALL_ROUTERS if wait else permission_pb2.REVOKE_WAIT_NONE
    await house.api.permissions.Revoke(request, timeout=WAIT_S)
    return boot_s() + (0.0 if wait else LEASE_S + MARGIN_S)


async def race(house: House, routers: list[Client], user_id: str, chance: random.Random) -> tuple[int, int]:
    """Grants, lets callers ask all the time, revokes; how many answers said yes before, and no after it."""
    token = await house.grant(user_id)
    for one in routers:
        assert (await known(one, house.ws, user_id=user_id, min_revision_token=token)).yes
    seen: list[Seen] = []
    over = False

    async def ask(client: Client) -> None:
        while not over:
            seen.append(await see(client, house.ws, user_id=user_id))
            await asyncio.sleep(chance.uniform(0, 0.02))

    callers = [asyncio.create_task(ask(client)) for client in routers for _ in range(CALLERS)]
    try:
        await asyncio.sleep(chance.uniform(0, 0.05))
        nobody_from = await revoked(house, user_id, wait=chance.random() < 0.5)
        while boot_s() < nobody_from:  # noqa: ASYNC110  (a clock is no event)
            await asyncio.sleep(0.01)
        for one in routers:
            assert (await known(one, house.ws, user_id=user_id)).code is grpc.StatusCode.PERMISSION_DENIED
    finally:
        over = True
        await asyncio.gather(*callers)
    wrong = [one for one in seen if one.yes and one.sent_at > nobody_from]
    assert not wrong, f"SEED={SEED}: {user_id} was let through after {nobody_from}: {wrong}"
    return sum(one.yes for one in seen), sum(one.code is grpc.StatusCode.PERMISSION_DENIED for one in seen)


@pytest.mark.timeout(120 + REVOKES)
async def test_c1_nobody_is_let_through_by_revokes_that_race_with_callers(house: House) -> None:
    chance = random.Random(SEED)
    routers = [await house.router(), await house.router()]
    for number in range(PAIRS):
        await house.api.make_user(house.ws, f"user-{number}")
    yes = no = done = 0
    while done < REVOKES:
        wave = [race(house, routers, f"user-{number}", chance) for number in range(min(PAIRS, REVOKES - done))]
        async with asyncio.timeout(WAIT_S):
            told = await asyncio.gather(*wave)
        yes, no, done = yes + sum(one for one, _ in told), no + sum(other for _, other in told), done + len(wave)
    assert yes, "nobody was let through before"
    assert no, "nobody was denied after"
    print(f"SEED={SEED}: {done} revokes, {yes} times yes before, {no} times no after")
