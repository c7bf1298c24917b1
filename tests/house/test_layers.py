"""Who may import whom: the contracts stand in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

from tests.house.contract import ROOT


def test_the_import_rules_are_kept() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
