"""Planted bugs must be planted: one that no longer applies to the service is noticed here, not after minutes."""

from pathlib import Path

import pytest

from benchmarks.chaos.control.plants import MUTANTS as CONTROL_MUTANTS
from benchmarks.chaos.control.plants import Mutant as ControlMutant
from benchmarks.chaos.mutants import PACKAGE
from benchmarks.chaos.outcomes import SERVICES, Outcome, planted
from benchmarks.chaos.plants import APPEND_SQL, MUTANTS, Mutant, Patch


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_to_the_service_as_it_is(mutant: Mutant, tmp_path: Path) -> None:
    planted(mutant.patches, tmp_path, package=PACKAGE)
    assert (tmp_path / PACKAGE / "app.py").is_file()
    require_python(mutant, tmp_path / PACKAGE)


@pytest.mark.parametrize("mutant", CONTROL_MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_to_the_control_plane_as_it_is(mutant: ControlMutant, tmp_path: Path) -> None:
    planted(mutant.patches, tmp_path)
    require_python(mutant, tmp_path)


def require_python(mutant: Mutant | ControlMutant, folder: Path) -> None:
    for patch in mutant.patches:
        path = folder / patch.file
        if path.suffix == ".py":
            compile(path.read_text(encoding="utf-8"), patch.file, "exec")


def test_the_newest_form_of_the_append_function_is_the_one_that_is_changed() -> None:
    """A migration that defines it anew makes changes of the former one mean nothing."""
    package = SERVICES / "memory" / PACKAGE
    forms = [
        str(path.relative_to(package))
        for path in sorted((package / "migrations" / "versions").glob("*.sql"))
        if "FUNCTION memory.append_turns(" in path.read_text(encoding="utf-8")
    ]
    assert forms[-1] == APPEND_SQL


def test_there_are_enough_and_each_has_a_name() -> None:
    names = [mutant.name for mutant in (*MUTANTS, *CONTROL_MUTANTS)]
    assert len(set(names)) == len(names)
    assert len(MUTANTS) > 10
    assert len(CONTROL_MUTANTS) > 8


@pytest.mark.parametrize("text", ["not there", "a b a"])
def test_what_does_not_apply_exactly_once_is_refused(text: str, tmp_path: Path) -> None:
    package = tmp_path / "source" / "memory" / PACKAGE
    package.mkdir(parents=True)
    (package / "file.py").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"file\.py holds the text to be changed \d times"):
        planted((Patch("file.py", "a", "b"),), tmp_path / "copy", package=PACKAGE, source=tmp_path / "source")


def test_a_mutant_must_be_caught_and_the_service_as_it_is_must_not_be_accused() -> None:
    service = next(mutant for mutant in MUTANTS if not mutant.patches)
    mutant = next(mutant for mutant in MUTANTS if mutant.patches)
    assert Outcome(service, {}, 1).is_well
    assert not Outcome(service, {"LOST": 1}, 1).is_well
    assert Outcome(mutant, {"LOST": 1}, 1).is_well
    assert not Outcome(mutant, {}, 1).is_well
    assert not Outcome(mutant, {"LOST": 1}, 1, "does not apply").is_well
