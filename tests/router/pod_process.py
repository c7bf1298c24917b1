"""A pod as a process of its own, to be killed and paused: opens sessions, and says what becomes of it, a line each."""

import asyncio
import sys

from twofold.pod import HeldSession, PodLink


async def main(router: str, pod_id: str, workspace_id: str, count: int) -> None:
    async def delivered(session: HeldSession, message_id: str, payload: bytes) -> None:
        print("got", session.session_id, payload.decode(), flush=True)

    async def closed(session: HeldSession, reason: str) -> None:
        print("over", session.session_id, reason, flush=True)

    async with PodLink([router], pod_id=pod_id, delivered=delivered, closed=closed) as pod:
        life = None
        for _ in range(count):
            session = await pod.open(workspace_id, user_id="ada", agent_id="agent", timeout_s=30)
            print("opened", session.session_id, session.fence, flush=True)
        while True:
            await pod.linked()
            if pod.incarnation not in (None, life):
                life = pod.incarnation
                print("life", *life, flush=True)
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    router, pod_id, workspace_id, count = sys.argv[1:]
    asyncio.run(main(router, pod_id, workspace_id, int(count)))
