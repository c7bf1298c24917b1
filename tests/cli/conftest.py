import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def open_folder() -> Iterator[Path]:
    """Unlike tmp_path, whose parents are closed to others, one that the account of the servers can enter."""
    path = Path(tempfile.mkdtemp(prefix="twofold-test-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


@pytest.fixture
def closed_folder(folder: Path) -> Path:
    """A folder below one that only root can enter."""
    if os.geteuid() != 0:
        pytest.skip("only root runs its servers under another account")
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    return closed / "project"
