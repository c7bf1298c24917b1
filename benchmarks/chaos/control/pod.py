"""`python -m benchmarks.chaos.control.pod`: a pod that opens, touches, closes, gives up and takes over sessions.

What it believes and what it was told it writes down, one JSON object a line: whoever stops or kills it can read that. The
sessions that there are stand in a file that all pods share.
"""

import asyncio
import json
import random
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from twofold.pod import HeldSession, PodLink, SessionRefused
from twofold.router.v1 import session_pb2
from twofold.router.v1.session_pb2_grpc import SessionServiceStub
from twofold_chassis.clocks import boot_s

QUIET = "quiet"
"""Where there is this file beside that of the sessions, nothing more is done."""
_SESSIONS_MAX = 5
_SHARED_MAX = 12
_BELIEF_S = 0.05
_THINKING_S = (0.02, 0.2)
_CALL_S = 4.0
_RACED = 0.4


def say(what: str, **values: Any) -> None:
    """Writes a line."""
    print(json.dumps({"what": what, **values}), flush=True)


class Pod:
    """One pod; `shared` is the file of sessions."""

    def __init__(self, name: str, place: Sequence[str], shared: Path, routers: Sequence[str]) -> None:
        self._workspace, self._user, self._agent = place
        self._shared = shared
        self._quiet = shared.with_name(QUIET)
        self._routers = routers
        self._link = PodLink(routers, pod_id=name, delivered=self._delivered, closed=self._closed)

    async def run(self) -> None:
        """Never ends."""
        async with self._link, asyncio.TaskGroup() as group:
            group.create_task(self._tell())
            while True:
                with suppress(SessionRefused, TimeoutError):
                    if not self._quiet.exists():
                        await self._act(random.random())
                await asyncio.sleep(random.uniform(*_THINKING_S))

    async def _tell(self) -> None:
        while True:
            at = boot_s()  # before it is looked at: what is believed later is told as of earlier
            held = [[session.session_id, session.fence] for session in self._link.sessions.values()]
            if self._link.serves:
                say("holds", at=at, sessions=held, life=str(self._link.incarnation))
            await asyncio.sleep(_BELIEF_S)

    async def _act(self, drawn: float) -> None:
        held = list(self._link.sessions.values())
        if drawn < 0.3 and len(held) < _SESSIONS_MAX:
            await self._open("")
        elif drawn < 0.5:
            known = self._shared.read_text().split()[-random.choice((1, _SHARED_MAX)) :]
            others = [name for name in known if (self._workspace, name) not in self._link.sessions]
            if others:
                await self._open(random.choice(others))
        elif held and drawn < 0.85:
            await self._link.touch(random.choice(held), timeout_s=_CALL_S)
        elif held and drawn < 0.96:
            await self._give_up(random.choice(held))
        elif held:
            await self._link.close(random.choice(held), timeout_s=_CALL_S)

    async def _open(self, take_over: str) -> None:
        if take_over:
            say("tries", at=boot_s(), session=take_over)
        try:
            session = await self._link.open(
                self._workspace, user_id=self._user, agent_id=self._agent, take_over=take_over, timeout_s=_CALL_S
            )
        except SessionRefused as refusal:
            say("refused", at=boot_s(), session=take_over, reason=refusal.reason)
            return
        say("opened", at=boot_s(), session=session.session_id, fence=session.fence)
        self._share(session)

    async def _give_up(self, session: HeldSession) -> None:
        """For others to take it over; sometimes somebody closes it at the same moment."""
        self._share(session)
        giving_up = self._link.close(session, give_up=True, timeout_s=_CALL_S)
        if random.random() < _RACED:
            await asyncio.gather(giving_up, self._close_from_outside(session))
        else:
            await giving_up

    async def _close_from_outside(self, session: HeldSession) -> None:
        request = session_pb2.CloseSessionRequest(workspace_id=self._workspace, session_id=session.session_id)
        request.fence = session.fence
        async with grpc.aio.insecure_channel(random.choice(self._routers)) as channel:
            with suppress(grpc.aio.AioRpcError):
                await SessionServiceStub(channel).CloseSession(request, timeout=_CALL_S)

    def _share(self, session: HeldSession) -> None:
        with self._shared.open("a") as shared:
            shared.write(f"{session.session_id}\n")

    async def _delivered(self, session: HeldSession, message_id: str, payload: bytes) -> None:
        pass

    async def _closed(self, session: HeldSession, reason: str) -> None:
        say("lost", at=boot_s(), session=session.session_id, fence=session.fence, reason=reason)


if __name__ == "__main__":
    asyncio.run(Pod(sys.argv[1], sys.argv[2:5], Path(sys.argv[5]), sys.argv[6:]).run())
