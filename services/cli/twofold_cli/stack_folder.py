"""The folder of a stack: nobody else's, changed only where we made it, used by one stack at a time."""

import base64
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from twofold_chassis.start import StartError
from twofold_cli.embedded.child import server_account
from twofold_cli.embedded.folder import ASIDE, DYING_S, held_within, make_folder, may_enter, opened_lock, sign, signed
from twofold_cli.embedded.processes import is_alive

FOLDER = Path(".twofold")
# Says that a folder is ours, and is the lock on it.
MARKER = ".twofold-stack"
# 0600, ours.
AUDIT_KEY = "audit.key"


def ready_folder(folder: Path) -> Path:
    """Made if it is not there, else used as it is. Raises StartError if it holds what is not ours."""
    folder = folder.absolute()
    if not folder.exists():
        make_folder(folder, _mode())
    elif not _is_usable(folder):
        raise StartError(f"{folder} holds other things: name a folder that is empty or not there yet")
    return folder


def ephemeral_folder(undo: AsyncExitStack) -> Path:
    """One of its own, gone at the end."""
    path = Path(tempfile.mkdtemp(prefix="twofold-"))
    make_folder(path, _mode())
    if not may_enter(server_account(), path):
        path.rmdir()
        path = Path(tempfile.mkdtemp(prefix="twofold-", dir=ASIDE))
        make_folder(path, _mode())
    undo.callback(shutil.rmtree, path)
    return path


async def hold(folder: Path, undo: AsyncExitStack, *, drain_s: float, warn: Callable[[str], None]) -> int:
    """The lock of the folder, for the services to inherit: until the last of them is gone, no other stack begins here.

    Services whose stack was killed drain without it, and have their ports as long: they are waited for.
    """
    lock = opened_lock(folder / MARKER)
    undo.callback(os.close, lock)
    if not await held_within(lock, DYING_S):
        pid = signed(lock)
        if pid is not None and is_alive(pid):
            raise StartError(f"another stack (process {pid}) is already running on the folder {folder}")
        warn(f"services of an earlier stack are still draining: waiting for them, up to {drain_s:g} s")
        if not await held_within(lock, drain_s):
            raise StartError(f"services that an earlier stack (process {pid}) left on {folder} do not end: end them first")
    sign(lock, os.getpid())
    make_folder(folder / "logs", 0o700)
    return lock


def audit_key(folder: Path) -> str:
    """The key that signs heads of the audit: of this stack alone, made at its first start and kept. Raises StartError."""
    path = folder / AUDIT_KEY
    try:
        if not path.exists():
            draft = path.with_suffix(".draft")
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
                target.write(base64.b64encode(secrets.token_bytes(32)).decode())
                target.flush()
                os.fsync(target.fileno())
            draft.replace(path)
        return path.read_text()
    except OSError as error:
        raise StartError(f"{path}, which holds the key of the audit, cannot be used: {error.strerror or error}") from None


def _mode() -> int:
    # The servers' account must be able to pass through, but not to look around.
    return 0o700 if server_account() is None else 0o711


def _is_usable(folder: Path) -> bool:
    try:
        return (folder / MARKER).is_file() or not any(folder.iterdir())
    except OSError as error:
        raise StartError(f"the folder {folder} cannot be used: {error.strerror or error}") from None
