"""A child process that never outlives this one, and that can be told to end, pause and go on."""

import asyncio
import atexit
import contextlib
import os
import pwd
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, Signals

from twofold_cli.embedded.logs import Log

LAUNCHER = Path(__file__).with_name("launch.py")
KILL_WAIT_S = 5.0
PROBE_S = 20.0


@dataclass(frozen=True)
class Account:
    uid: int
    gid: int


def server_account() -> Account | None:
    """Who servers run as: `nobody` when we are root (Postgres refuses root), else None, ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return Account(65534, 65534)
    return Account(nobody.pw_uid, nobody.pw_gid)


def launch_command(argv: Sequence[str], *, death_signal: Signals, account: Account | None, folder: Path | None) -> list[str]:
    command = [sys.executable, "-I", "-S", str(LAUNCHER), "--parent", str(os.getpid())]
    command += ["--signal", str(int(death_signal))]
    if account is not None:
        command += ["--uid", str(account.uid), "--gid", str(account.gid)]
    if folder is not None:
        command += ["--folder", str(folder)]
    return [*command, "--", *argv]


def plain_environment() -> dict[str, str]:
    """What a server gets: nothing of ours that could configure it (PGDATA, PGPORT…), messages in English."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def answer_of(argv: Sequence[str], account: Account | None, folder: Path | None = None) -> str | None:
    """What the command prints when the account runs it there; None where it may not or cannot."""
    command = launch_command(argv, death_signal=SIGKILL, account=account, folder=folder)
    done = subprocess.run(
        command,
        env=plain_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROBE_S,
        check=False,
    )
    return done.stdout if done.returncode == 0 else None


def send(pid: int, number: Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# Only used where there is no PR_SET_PDEATHSIG: the signal each living child is sent when we exit. It helps
# against every end but SIGKILL of ourselves.
_MORTAL: dict[int, Signals] = {}


def _end_at_exit(pid: int, death_signal: Signals) -> None:
    if sys.platform == "linux":
        return
    if not _MORTAL:
        atexit.unregister(_end_mortal)
        atexit.register(_end_mortal)
    _MORTAL[pid] = death_signal


def _end_mortal() -> None:
    for pid, death_signal in _MORTAL.items():
        send(pid, death_signal)


class Child:
    """One process at a time, started again as often as wanted.

    Start it from the main thread: Linux sends the death signal when the *thread* that started the child ends.
    """

    def __init__(self, name: str, log: Path, *, death_signal: Signals, account: Account | None = None) -> None:
        self.name = name
        self.log = Log(log)
        self._death_signal = death_signal
        self._account = account
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False
        self._death: asyncio.Future[int] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        if self._process is None or not self.running:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    async def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        held: Sequence[int] = (),
    ) -> None:
        """`held` are file descriptors the process inherits: a lock among them lives exactly as long as it."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a child must be started from the main thread: it dies with the thread")
        if self.running:
            raise RuntimeError(f"{self.name} is running already")
        self._ending = False
        command = launch_command(argv, death_signal=self._death_signal, account=self._account, folder=folder)
        with self.log.opened() as output:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(env if env is not None else plain_environment()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=tuple(held),
            )
        if self._death is None or self._death.done():
            self._death = asyncio.get_running_loop().create_future()
        self._watch = asyncio.create_task(self._notice_death(self._process, self._death))
        _end_at_exit(self._process.pid, self._death_signal)

    async def _notice_death(self, process: asyncio.subprocess.Process, death: asyncio.Future[int]) -> None:
        code = await process.wait()
        _MORTAL.pop(process.pid, None)
        if not self._ending and not death.done():
            death.set_result(code)

    async def died(self) -> int:
        """Returns once the process has ended without being told to: its return code."""
        if self._death is None:
            raise RuntimeError(f"{self.name} was never started")
        return await asyncio.shield(self._death)

    async def ended(self, within_s: float) -> bool:
        if self._process is None:
            return True
        try:
            async with asyncio.timeout(within_s):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    async def returned(self) -> int:
        """The return code of a process that is expected to finish by itself."""
        self._ending = True
        assert self._process is not None
        return await self._process.wait()

    def signal(self, number: Signals) -> None:
        if self.running:
            send(self.pid, number)

    async def end(self, *steps: tuple[Signals, float]) -> int | None:
        """Each signal in turn with the seconds it is given, SIGKILL in the end; then it is gone: its return code."""
        self._ending = True
        for number, within_s in steps:
            self.signal(number)
            if await self.ended(within_s):
                break
        else:
            self.signal(SIGKILL)
            await self.ended(KILL_WAIT_S)
        return None if self._process is None else self._process.returncode
