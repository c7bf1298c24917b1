"""Planting a bug into a copy of the services, and what became of it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.chaos.plants import Patch

SERVICES = Path(__file__).resolve().parents[2] / "services"
TOLD_MAX = 20


class Planted(Protocol):
    """A mutant of either world."""

    @property
    def name(self) -> str: ...

    @property
    def flaw(self) -> str: ...

    @property
    def patches(self) -> tuple[Patch, ...]: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one mutant; `problem` says why it could not be tried at all."""

    mutant: Planted
    caught: dict[str, int]
    schedules: int
    problem: str = ""
    violations: Sequence[Any] = ()

    @property
    def is_well(self) -> bool:
        """Whether the checker did what it must."""
        return not self.problem and bool(self.caught) == bool(self.mutant.patches)


def planted(patches: Sequence[Patch], folder: Path, *, package: str = "", source: Path = SERVICES) -> None:
    """Copies of the services with the bug in them. Raises ValueError if the change does not apply exactly once.

    Files are those of `package`; without one the first part of their names is the package.
    """
    packages = {package} if package else {patch.file.partition("/")[0] for patch in patches}
    for name in packages:
        original = source / name.removeprefix("twofold_") / name
        shutil.copytree(original, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for patch in patches:
        path = folder / package / patch.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        count = text.count(patch.old)
        if count != 1:
            raise ValueError(f"{patch.file} holds the text to be changed {count} times: {patch.old.strip()[:60]!r}")
        path.write_text(text.replace(patch.old, patch.new), encoding="utf-8")
