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

from twofold.pod import HeldSession, PodLink, SessionRefused
from twofold_chassis.clocks import boot_s

_SESSIONS_MAX = 5
_SHARED_MAX = 12
_BELIEF_S = 0.05
_THINKING_S = (0.02, 0.2)
_CALL_S = 4.0


def say(what: str, **values: Any) -> None:
    """Writes a line."""
    print(json.dumps({"what": what, **values}), flush=True)


class Pod:
    """One pod; `shared` is the file of sessions."""

    def __init__(self, name: str, place: Sequence[str], shared: Path, routers: Sequence[str]) -> None:
        self._workspace, self._user, self._agent = place
        self._shared = shared
        self._link = PodLink(routers, pod_id=name, delivered=self._delivered, closed=self._closed)

    async def run(self) -> None:
        """Never ends."""
        async with self._link, asyncio.TaskGroup() as group:
            group.create_task(self._tell())
            while True:
                with suppress(SessionRefused, TimeoutError):
                    await self._act(random.random())
                await asyncio.sleep(random.uniform(*_THINKING_S))

    async def _tell(self) -> None:
        while True:
            at = boot_s()  # before it is looked at: what is believed later is told as of earlier
            held = [[session.session_id, session.fence] for session in self._link.sessions.values()]
            if self._link.serves and held:
                say("holds", at=at, sessions=held)
            elif self._link.serves:
                say("holds", at=at, sessions=[])
            await asyncio.sleep(_BELIEF_S)

    async def _act(self, drawn: float) -> None:
        held = list(self._link.sessions.values())
        if drawn < 0.3 and len(held) < _SESSIONS_MAX:
            await self._open("")
        elif drawn < 0.5:
            known = self._shared.read_text().split()[-_SHARED_MAX:]
            others = [name for name in known if (self._workspace, name) not in self._link.sessions]
            if others:
                await self._open(random.choice(others))
        elif held and drawn < 0.85:
            await self._link.touch(random.choice(held), timeout_s=_CALL_S)
        elif held:
            session = random.choice(held)
            gives_up = drawn < 0.95
            say("closing", at=boot_s(), session=session.session_id, fence=session.fence, gives_up=gives_up)
            await self._link.close(session, give_up=gives_up, timeout_s=_CALL_S)

    async def _open(self, take_over: str) -> None:
        if take_over:
            say("tries", at=boot_s(), session=take_over)
        session = await self._link.open(
            self._workspace, user_id=self._user, agent_id=self._agent, take_over=take_over, timeout_s=_CALL_S
        )
        say("opened", at=boot_s(), session=session.session_id, fence=session.fence)
        with self._shared.open("a") as shared:
            shared.write(f"{session.session_id}\n")

    async def _delivered(self, session: HeldSession, message_id: str, payload: bytes) -> None:
        pass

    async def _closed(self, session: HeldSession, reason: str) -> None:
        say("lost", at=boot_s(), session=session.session_id, fence=session.fence, reason=reason)


if __name__ == "__main__":
    asyncio.run(Pod(sys.argv[1], sys.argv[2:5], Path(sys.argv[5]), sys.argv[6:]).run())
