"""Sessions over real routers, a real registry and a real Redis: what is opened is found, reached, closed, and remembered."""

from collections.abc import AsyncIterator

import pytest

from tests.router.pods import Cloud, a_cloud
from twofold_cli.embedded.postgres import EmbeddedPostgres
from twofold_cli.embedded.redis import EmbeddedRedis


@pytest.fixture
async def cloud(postgres_server: EmbeddedPostgres, own_redis: EmbeddedRedis, workspace_id: str) -> AsyncIterator[Cloud]:
    async with a_cloud(postgres_server, own_redis, workspace_id) as cloud:
        yield cloud


async def test_a_session_is_found_until_its_pod_closes_it(cloud: Cloud) -> None:
    router = await cloud.router()
    pod = await cloud.pod(router)
    session = await cloud.open(pod)
    found = (await router.get(session.session_id)).session
    assert (found.user_id, found.agent_id, found.pod_id, found.fence) == ("ada", "agent", "gate-1", session.fence)
    assert await router.ids() == {session.session_id}
    await pod.close(session)
    assert await router.ids() == set()
