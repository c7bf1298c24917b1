"""Pods as processes that are stopped and killed, and who looks at the table of sessions meanwhile."""

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGSTOP, SIGTERM

import grpc

from benchmarks.chaos.control.holding import Holding, Listed, Word
from benchmarks.chaos.control.pod import QUIET
from benchmarks.chaos.control.world import World
from twofold.router.v1 import session_pb2
from twofold.router.v1.session_pb2_grpc import SessionServiceStub
from twofold_chassis.clocks import boot_s
from twofold_cli.embedded.child import Child

COUNT = 3
_THINKING_S = (0.05, 0.3)
_CALL_S = 2.0
_MEDDLED = 0.3
_SAME_S = 60.0
_SILENT_S = 5.0


class Pod:
    """One pod, and what it has written down."""

    def __init__(self, name: str, argv: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self._argv = [sys.executable, "-m", "benchmarks.chaos.control.pod", name, *argv]
        self._environment = environment
        self._path = folder / f"{name}.log"
        self.child = Child(name, self._path, death_signal=SIGTERM)

    async def start(self) -> None:
        """Begins another life."""
        await self.child.start(self._argv, env=self._environment)

    async def kill(self) -> None:
        """kill -9."""
        await self.child.end()

    def words(self) -> list[Word]:
        """All that it has written down, over all its lives; a line that was cut short by its end is none."""
        words = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines() if self._path.exists() else ():
            with suppress(ValueError, KeyError, TypeError):
                told = json.loads(line)
                sessions = tuple((session, fence) for session, fence in told.get("sessions", ()))
                named = told.get("session", ""), told.get("fence", 0), told.get("reason", "")
                words.append(Word(self.name, told["what"], told["at"], *named, sessions, told.get("life", "")))
        return words


class Pods:
    """All pods of one schedule."""

    def __init__(self, pods: Sequence[Pod], holding: Holding, workspace: str, folder: Path) -> None:
        self.pods = pods
        self._folder = folder
        self._holding = holding
        self._workspace = workspace

    async def kill(self, number: int, seconds: float) -> None:
        """kill -9, and another life after that time."""
        pod = self.pods[number % len(self.pods)]
        await pod.kill()
        self._holding.kills.append((pod.name, boot_s()))
        await asyncio.sleep(seconds)
        await pod.start()

    async def stop(self, number: int, seconds: float) -> None:
        """Stands still for that time."""
        pod = self.pods[number % len(self.pods)]
        pod.child.signal(SIGSTOP)
        await asyncio.sleep(seconds)
        pod.child.signal(SIGCONT)

    async def look(self, routers: Sequence[grpc.aio.Channel], chance: random.Random, enough: asyncio.Event) -> None:
        """Lists all the time, and closes under fences of before, until it is enough."""
        stubs = [SessionServiceStub(channel) for channel in routers]
        while not enough.is_set():
            stub = chance.choice(stubs)
            with suppress(grpc.aio.AioRpcError):
                self._holding.listed.append(await self._list(stub))
                if chance.random() < _MEDDLED:
                    await self._meddle(stub, chance)
            await asyncio.sleep(chance.uniform(*_THINKING_S))

    async def settle(self, routers: Sequence[grpc.aio.Channel]) -> None:
        """Returns when the table is what the pods hold, or it is hopeless. They do nothing more meanwhile."""
        self._folder.joinpath(QUIET).touch()
        stub = SessionServiceStub(routers[0])
        until = boot_s() + _SAME_S
        while boot_s() < until:
            with suppress(grpc.aio.AioRpcError):
                before, listed, after = self._held(), await self._list(stub), self._held()
                if before is not None and set(listed.sessions) == before == after:
                    self._holding.differs = ""
                    return
                held = "what is held nobody knows: a pod does not serve" if after is None else f"{sorted(after)} are held"
                self._holding.differs = f"{sorted(listed.sessions)} are listed, {held}"
            await asyncio.sleep(0.1)

    def collect(self) -> None:
        """Reads what they have written down."""
        for pod in self.pods:
            self._holding.words += pod.words()

    async def _list(self, stub: SessionServiceStub) -> Listed:
        request = session_pb2.ListSessionsRequest(workspace_id=self._workspace, page_size=500)
        sent = boot_s()
        answer = await stub.ListSessions(request, timeout=_CALL_S)
        return Listed(sent, tuple((session.session_id, session.fence) for session in answer.sessions))

    async def _meddle(self, stub: SessionServiceStub, chance: random.Random) -> None:
        """Closes a session under a fence of before, which must not touch who holds it now."""
        known = [key for listed in self._holding.listed[-20:] for key in listed.sessions]
        if not known:
            return
        session, fence = chance.choice(known)
        newest = max(other for name, other in known if name == session)
        if fence == newest:
            return
        request = session_pb2.CloseSessionRequest(workspace_id=self._workspace, session_id=session, fence=fence)
        sent = boot_s()
        await stub.CloseSession(request, timeout=_CALL_S)
        self._holding.closed.append((session, fence, sent))

    def _held(self) -> set[tuple[str, int]] | None:
        """What all pods hold now; None if one of them does not serve."""
        held: set[tuple[str, int]] = set()
        for pod in self.pods:
            last = [word for word in pod.words()[-50:] if word.what == "holds"]
            if not last or boot_s() - last[-1].at > _SILENT_S:
                return None
            held |= set(last[-1].sessions)
        return held


def _shared_file(folder: Path) -> Path:
    folder.mkdir()
    shared = folder / "sessions"
    shared.touch()
    return shared


@asynccontextmanager
async def raise_pods(world: World, holding: Holding, place: tuple[str, str, str], folder: Path) -> AsyncIterator[Pods]:
    """Pods that hold sessions through the routers, all at one place: a workspace, a user, an agent."""
    workspace = place[0]
    argv = [*place, str(_shared_file(folder)), *(router.process.target for router in world.routers)]
    pods = [Pod(f"pod-{number}-{workspace}", argv, world.environment, folder) for number in range(COUNT)]
    async with AsyncExitStack() as undo:
        for pod in pods:
            undo.push_async_callback(pod.child.end)
            await pod.start()
        yield Pods(pods, holding, workspace, folder)
