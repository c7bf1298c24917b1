"""Each invariant of the router has a test that bears its number."""

import re
from pathlib import Path

import pytest

NAMES = [
    name
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    for name in re.findall(r"def (test_(?:c\d+_)+\w+)\(", path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("number", range(1, 13))
def test_an_invariant_has_a_test_that_bears_its_number(number: int) -> None:
    assert any(f"_c{number}_" in name for name in NAMES)
