"""Where an embedded server keeps its data, its log and what must survive a restart."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from twofold_chassis.start import StartError
from twofold_cli.embedded.child import Account, answer_of
from twofold_cli.embedded.processes import until

# Reachable by every account, and unlike /tmp it survives a reboot.
ASIDE = Path("/var/tmp")
DYING_S = 2.0
PID_BYTES = 20


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def opened_lock(path: Path) -> int:
    """The file of a lock, made if need be; not yet held."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartError(f"{path} cannot be used: {error.strerror or error}") from error


async def held_within(lock: int, within_s: float) -> bool:
    """Whether the lock came to be ours in time."""
    return await until(lambda: _locked(lock), within_s)


async def reserve(folder: Path, what: str) -> int:
    """The lock of the folder, as a file descriptor; StartError naming who holds it."""
    lock = opened_lock(folder / "lock")
    if await held_within(lock, DYING_S):
        return lock
    pid = signed(lock) or "?"
    os.close(lock)
    raise StartError(f"{what} (process {pid}) is already running on the folder {folder}")


def sign(lock: int, pid: int) -> None:
    """Says who holds the lock, for those who meet it."""
    os.pwrite(lock, str(pid).ljust(PID_BYTES).encode(), 0)


def signed(lock: int) -> int | None:
    """Who held it last."""
    text = os.pread(lock, PID_BYTES, 0).decode(errors="replace").strip()
    return int(text) if text.isdecimal() else None


def make_folder(path: Path, mode: int) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
    except OSError as error:
        raise StartError(f"the folder {path} cannot be used: {error.strerror or error}") from error


def may_enter(account: Account | None, folder: Path) -> bool:
    return account is None or answer_of([], account, folder) is not None


def folder_aside(label: str, identity: str) -> Path:
    """A folder below /var/tmp that belongs to us alone, named after what it stands for."""
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = ASIDE / f"twofold-{label}-{digest}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o711)
    found = path.lstat()
    # Anybody may create names in /var/tmp: what somebody else put there is not trusted with data.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise StartError(f"{path} is in the way: it must be a folder of ours that nobody else can write to")
    path.chmod(0o711)
    return path


class ServerFolder:
    """`path` holds the log and `state.json` (0600, ours) and `data` (0700, the account's).

    Where the account cannot get to the wanted folder (say below a 0700 /root), one below /var/tmp is used
    instead and `note` says so.
    """

    def __init__(self, wanted: Path, account: Account | None) -> None:
        self._account = account
        wanted = wanted.absolute()
        self.note: str | None = None
        make_folder(wanted, 0o700 if account is None else 0o711)
        self.path = wanted if may_enter(account, wanted) else self._aside(wanted)

    def _aside(self, wanted: Path) -> Path:
        path = folder_aside(wanted.name, str(wanted))
        self.note = f"{wanted} cannot be entered by the account `nobody`: its data is kept in {path}"
        return path

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    def give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.uid, self._account.gid)

    async def reserve(self, what: str) -> int:
        """A lock for the server to inherit (`Child.start(held=…)`); then close it here.

        The kernel lets go of it when the last process of that server is gone, so nobody writes to this data
        beside it. One that is just dying, as its parent did, is waited for.
        """
        return await reserve(self.path, what)

    def make_data(self) -> None:
        make_folder(self.data, 0o700)
        self.give(self.data)

    def make_draft(self) -> Path:
        """An empty place for data in the making; a draft that was cut short is thrown away."""
        draft = self.path / "data.draft"
        if draft.exists():
            shutil.rmtree(draft)
        make_folder(draft, 0o700)
        self.give(draft)
        return draft

    def remove(self) -> None:
        """Everything, for good; for throw-away servers."""
        shutil.rmtree(self.path)

    def write_secret(self, name: str, text: str) -> Path:
        """0600 from its first moment, complete or not there at all."""
        path, draft = self.path / name, self.path / f".{name}.draft"
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
            target.write(text)
            target.flush()
            os.fsync(target.fileno())
        draft.replace(path)
        return path

    def read_state(self) -> dict[str, Any]:
        """Passwords and the port of last time; empty before the first start."""
        path = self.path / "state.json"
        if not path.exists():
            return {}
        try:
            state = json.loads(path.read_text())
            if not isinstance(state, dict):
                raise ValueError("it holds something else")
        except (OSError, ValueError) as error:
            raise StartError(f"{path}, which holds the passwords, cannot be read: {error}") from error
        return state

    def write_state(self, state: dict[str, Any]) -> None:
        self.write_secret("state.json", json.dumps(state, indent=1))
