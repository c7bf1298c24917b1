"""A stack's folder: left as it was where it was there before, and waited for while somebody is in it."""

import os
import shutil
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from twofold_chassis.start import StartError
from twofold_cli.embedded.child import Child
from twofold_cli.embedded.folder import held_within, opened_lock, sign
from twofold_cli.stack_folder import MARKER, hold, ready_folder


def test_a_folder_with_other_things_is_refused_and_left_alone(folder: Path) -> None:
    folder.chmod(0o1777)
    (folder / "lock").write_text("mine")
    with pytest.raises(StartError, match=f"{folder} holds other things"):
        ready_folder(folder)
    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert (folder / "lock").read_text() == "mine"


def test_an_empty_folder_and_one_of_ours_keep_their_mode(folder: Path) -> None:
    folder.chmod(0o1777)
    assert ready_folder(folder) == folder
    (folder / MARKER).touch()
    assert ready_folder(folder) == folder
    assert folder.stat().st_mode & 0o7777 == 0o1777


def test_a_folder_that_is_made_is_closed_to_others(folder: Path) -> None:
    assert ready_folder(folder / "new").stat().st_mode & 0o066 == 0


async def left_behind(folder: Path, seconds: str) -> Child:
    """A service of a stack that is gone: its lock lives on in a process that ends after `seconds`."""
    lock = opened_lock(folder / MARKER)
    assert await held_within(lock, 1)
    child = Child("sleep", folder / "log", death_signal=signal.SIGKILL)
    await child.start([shutil.which("sleep") or "/bin/sleep", seconds], held=[lock])
    gone = Child("true", folder / "log", death_signal=signal.SIGKILL)
    await gone.start([shutil.which("true") or "/bin/true"])
    sign(lock, gone.pid)
    await gone.returned()
    os.close(lock)
    return child


async def test_services_that_a_killed_stack_left_are_waited_for(folder: Path) -> None:
    child, told = await left_behind(folder, "3"), list[str]()
    async with AsyncExitStack() as undo:
        await hold(folder, undo, drain_s=20, warn=told.append)
        assert not child.running or await child.ended(1)
    assert told == ["services of an earlier stack are still draining: waiting for them, up to 20 s"]


async def test_they_are_not_waited_for_longer_than_they_may_drain(folder: Path) -> None:
    child = await left_behind(folder, "600")
    try:
        async with AsyncExitStack() as undo:
            with pytest.raises(StartError, match="do not end"):
                await hold(folder, undo, drain_s=0.1, warn=lambda _: None)
    finally:
        await child.end()
