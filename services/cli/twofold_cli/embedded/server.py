"""What the embedded Postgres and the embedded Redis have in common: the life of one server on one folder."""

import os
import time
from abc import ABC, abstractmethod
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals
from typing import Any, ClassVar

from twofold_chassis.start import StartError
from twofold_cli.embedded.binaries import Binaries, runnable
from twofold_cli.embedded.child import Child, server_account
from twofold_cli.embedded.folder import ServerFolder, sign
from twofold_cli.embedded.ports import LOOPBACK, free_port, is_free

PORT_ATTEMPTS = 3
POLL_S = 0.02


class EmbeddedServer(ABC):
    """Start, stop, kill, pause and resume it as often as wanted: port, passwords and data stay the same.

    Use it from the main thread and from one event loop (see `Child`). `stop` is right at any time, also after
    a start that failed or was cancelled.
    """

    host: ClassVar[str] = LOOPBACK
    name: ClassVar[str]
    # What the kernel sends it should we die.
    death_signal: ClassVar[Signals]
    shutdown: ClassVar[tuple[tuple[Signals, float], ...]]

    def __init__(self, folder: Path, *, start_s: float = 10.0) -> None:
        self._wanted = folder
        self._start_s = start_s
        self._account = server_account()
        self._folder: ServerFolder | None = None
        self._child: Child | None = None
        self._binaries: Binaries | None = None
        self._port: int | None = None
        # Passwords, and the port of last time.
        self._state: dict[str, Any] = {}
        # What a person should know about where things are; empty in the usual case.
        self.notes: list[str] = []

    # Where it is -----------------------------------------------------------------------------------------

    @property
    def folder(self) -> ServerFolder:
        if self._folder is None:
            raise RuntimeError(f"this {self.name} was never started")
        return self._folder

    @property
    def child(self) -> Child:
        if self._child is None:
            raise RuntimeError(f"this {self.name} was never started")
        return self._child

    @property
    def port(self) -> int:
        if self._port is None:
            raise RuntimeError(f"this {self.name} was never started")
        return self._port

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    # Its life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Really answers when it returns; otherwise StartError with the last lines of its log."""
        binaries = self._prepare()
        lock = await self.folder.reserve(f"a {self.name}")
        try:
            self._state = self._remembered()
            await self._make_data(binaries)
            await self._start_on_a_port(binaries, lock)
            sign(lock, self.pid)
        finally:
            os.close(lock)
        self._state["port"] = self.port
        self.folder.write_state(self._state)

    async def stop(self) -> None:
        """The orderly way within bounds, then SIGKILL: in any case it is gone."""
        if self.running:
            self.resume()
            await self.child.end(*self.shutdown)

    async def kill(self) -> None:
        """kill -9, as in a crash."""
        if self.running:
            await self.child.end()

    def pause(self) -> None:
        """Connections stay open and the kernel accepts new ones, but nothing answers."""
        self.child.signal(SIGSTOP)

    def resume(self) -> None:
        self.child.signal(SIGCONT)

    def _prepare(self) -> Binaries:
        if self._binaries is None:
            self._binaries, note = runnable(self._find(), self._account)
            self._folder = ServerFolder(self._wanted, self._account)
            self.notes = [text for text in (note, self._folder.note) if text]
            log = self._folder.log
            self._child = Child(self.name, log, death_signal=self.death_signal, account=self._account)
        return self._binaries

    async def _start_on_a_port(self, binaries: Binaries, lock: int) -> None:
        for _ in range(PORT_ATTEMPTS):
            port = self._port or free_port(self._state.get("port"))
            await self.child.start(self._argv(binaries, port), folder=self.folder.data, held=[lock])
            if await self._ready(port):
                self._port = port
                return
            lost_the_port = not self.child.running and not is_free(port)
            await self.child.end(*self.shutdown)
            if not lost_the_port:
                break
        raise StartError(
            f"{self.name} did not start within {self._start_s:g} s in {self.folder.path}; its log ends:\n"
            f"{self.child.log.tail()}"
        )

    async def _ready(self, port: int) -> bool:
        """Whether it answers in time; False at once when it has ended."""
        deadline = time.monotonic() + self._start_s
        while self.child.running and (left_s := deadline - time.monotonic()) > 0:
            if await self._answers(port, left_s):
                return True
            await self.child.ended(POLL_S)
        return False

    async def died(self) -> int:
        """Returns once it has ended without being told to."""
        return await self.child.died()

    # What differs ----------------------------------------------------------------------------------------

    @abstractmethod
    def _find(self) -> Binaries:
        """Where the programs are; StartError naming what to install."""

    @abstractmethod
    def _remembered(self) -> dict[str, Any]:
        """The state of last time, or new passwords; written down before data is made with them."""

    @abstractmethod
    async def _make_data(self, binaries: Binaries) -> None:
        """The data folder exists and fits the binaries."""

    @abstractmethod
    def _argv(self, binaries: Binaries, port: int) -> list[str]: ...

    @abstractmethod
    async def _answers(self, port: int, timeout_s: float) -> bool: ...
