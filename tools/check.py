"""Everything that can be known without running the product, one line a check (= make check).

python tools/check.py              # exit status 1 if a check failed; only failing checks print their output
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
PYTHON = sys.executable
CHECK_S = 300


@dataclass(frozen=True)
class Check:
    """A command whose exit status says whether it is well; one that is not enforced is reported only."""

    name: str
    command: Sequence[str]
    enforced: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of a check."""

    check: Check
    passed: bool
    seconds: float
    output: str


def checks() -> list[Check]:
    """All of them, the slow ones first, as two run at a time."""
    return [
        Check("types (mypy --strict)", [_script("mypy")]),
        Check("import rules (import-linter)", [_script("lint-imports"), "--no-cache", "--no-logo"]),
        Check("stubs are fresh", [PYTHON, "tools/generate_stubs.py", "--check"]),
        Check("settings table is fresh", [PYTHON, "tools/settings_table.py", "--check"]),
        Check("file formats", [PYTHON, "tools/formats.py"]),
        Check("lint (ruff)", [_script("ruff"), "check", "--quiet", "--output-format", "concise"]),
        Check("format (ruff)", [_script("ruff"), "format", "--check", "--quiet", "--output-format", "concise"]),
        Check("contract lint (buf)", [_script("buf"), "lint"]),
        Check("contract format (buf)", [_script("buf"), "format", "--diff", "--exit-code"]),
        *_breaking(),
    ]


def _script(name: str) -> str:
    return str(SCRIPTS / name)


def _breaking() -> list[Check]:
    """Against the last release, which nothing may break; before the first one, what has changed since main is only told."""
    base = _git("describe", "--tags", "--abbrev=0")
    against = f".git#tag={base}" if base else ".git#branch=main"
    if not base and not _git("rev-parse", "--verify", "--quiet", "main"):
        return []
    name = f"contract breaks nothing since {base or 'main'} (buf)"
    return [Check(name, [_script("buf"), "breaking", "--against", against], enforced=bool(base))]


def _git(*arguments: str) -> str:
    """The answer of git; empty where there is none, or no repository."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return ""
    answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def run(check: Check) -> Outcome:
    """Runs one check from the root of the project."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            check.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=CHECK_S, check=False
        )
        passed, output = done.returncode == 0, done.stdout.decode("utf-8", errors="replace")
    except subprocess.TimeoutExpired:
        passed, output = False, f"still running after {CHECK_S} s"
    except OSError as error:
        passed, output = False, f"cannot be run: {error}"
    return Outcome(check, passed, time.monotonic() - began, output)


def report(outcome: Outcome) -> None:
    """One line, and under it what a failing check said."""
    word = "ok" if outcome.passed else "FAILED" if outcome.check.enforced else "differs (reported, not enforced)"
    print(f"{outcome.check.name:<44} {outcome.seconds:6.1f} s  {word}", flush=True)
    if not outcome.passed:
        print("".join(f"    {line}\n" for line in outcome.output.splitlines()), flush=True)


def main() -> int:
    failed = 0
    with ThreadPoolExecutor(max_workers=2) as pool:
        for outcome in pool.map(run, checks()):
            report(outcome)
            failed += outcome.check.enforced and not outcome.passed
    print(f"{failed} failed" if failed else "all well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
