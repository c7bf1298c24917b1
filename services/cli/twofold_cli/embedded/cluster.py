"""The data folder of a Postgres: made by initdb, checked before a server is let near it."""

import asyncio
import os
import re
from signal import SIGKILL

from twofold_chassis.start import StartError
from twofold_cli.embedded.binaries import Binaries, version_of
from twofold_cli.embedded.child import Account, Child
from twofold_cli.embedded.folder import ServerFolder
from twofold_cli.embedded.processes import command_line, is_alive

MAJOR_MIN = 16
INITDB_S = 60.0


def major_of(binaries: Binaries, account: Account | None) -> int:
    version = re.search(r"(\d+)", version_of(binaries, account) or "")
    major = int(version.group(1)) if version else 0
    if major < MAJOR_MIN:
        raise StartError(f"{binaries.server} is version {major}: Postgres {MAJOR_MIN} or newer is needed")
    return major


async def make_cluster(
    folder: ServerFolder, binaries: Binaries, account: Account | None, superuser: str, password: str
) -> None:
    """The data folder appears complete or not at all."""
    draft = folder.make_draft()
    password_file = folder.write_secret("superuser", password)
    folder.give(password_file)
    argv = [binaries.program("initdb"), "--pgdata", str(draft), "--username", superuser]
    argv += ["--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C"]
    if major_of(binaries, account) >= 17:
        # Knows the case and the classes of all letters on every platform, without asking libc.
        argv += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    child = Child("initdb", folder.log, death_signal=SIGKILL, account=account)
    try:
        await child.start(argv, folder=folder.path)
        code = await _finished(child)
    finally:
        password_file.unlink()
    if code != 0:
        raise StartError(f"Postgres could not be initialised in {folder.path}:\n{child.log.tail()}")
    draft.replace(folder.data)


async def _finished(child: Child) -> int | None:
    """None when it took too long."""
    try:
        async with asyncio.timeout(INITDB_S):
            return await child.returned()
    except TimeoutError:
        return None
    finally:
        await child.end()


def refuse_other_version(folder: ServerFolder, major: int) -> None:
    kept = int((folder.data / "PG_VERSION").read_text())
    if kept != major:
        raise StartError(f"{folder.path} was made by Postgres {kept}, but Postgres {major} is installed")


def clear_stale_pid(folder: ServerFolder) -> None:
    """To be called with the folder's lock held, so that no Postgres of ours is left on this data.

    Its number may live on in another process, for whose sake Postgres would refuse to start.
    """
    pid_file = folder.data / "postmaster.pid"
    if not pid_file.exists():
        return
    first, _, rest = pid_file.read_text().partition("\n")
    pid = int(first)
    if not is_alive(pid):
        return
    if str(folder.data) in command_line(pid):
        raise StartError(f"a Postgres (process {pid}) is already running on the folder {folder.path}")
    # Postgres takes a file that names its own parent for stale, and still examines the rest of it.
    pid_file.write_text(f"{os.getpid()}\n{rest}")
