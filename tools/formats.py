"""Whether the files of this project are in form: UTF-8, clean line ends, YAML, TOML and JSON that parse, Lua headers.

python tools/formats.py            # exit status 1 names each problem as file:line
"""

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

ROOT = Path(__file__).resolve().parent.parent
_OUTSIDE = {"build", "dist", "__pycache__"}
_HIDDEN_BUT_OURS = {".ci", ".dockerignore", ".env.example", ".gitignore", ".yamllint"}
_TEXT = {".py", ".pyi", ".md", ".toml", ".yml", ".yaml", ".json", ".sql", ".lua", ".proto", ".sh", ".txt", ".mako", ""}
_GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$").search

Problems = Iterator[str]


def main() -> int:
    problems = [f"{path.relative_to(ROOT)}{problem}" for path in _files(ROOT) for problem in _problems(path)]
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in _OUTSIDE or path.name.endswith(".egg-info"):
            continue
        if path.name.startswith(".") and path.name not in _HIDDEN_BUT_OURS:
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.suffix in _TEXT and not _GENERATED(path.name):
            yield path


def _problems(path: Path) -> Problems:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        yield ": is not UTF-8"
        return
    yield from _lines(text)
    check = _BY_SUFFIX.get(path.suffix)
    if check is not None:
        yield from check(text)


def _lines(text: str) -> Problems:
    for number, line in enumerate(text.split("\n"), start=1):
        if line != line.rstrip():
            yield f":{number}: white space at the end of the line"
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield ": does not end with exactly one line break"


def _yaml(text: str) -> Problems:
    for problem in linter.run(text, YamlLintConfig(file=str(ROOT / ".yamllint"))):
        yield f":{problem.line}: {problem.desc}"
    try:
        yaml.safe_load(text)
    except yaml.YAMLError as error:
        yield f": {error}"


def _toml(text: str) -> Problems:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        yield f": {error}"


def _json(text: str) -> Problems:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        yield f": {error}"


def _lua(text: str) -> Problems:
    """The header is the script's contract: it names every KEYS[n] and ARGV[n] that the code below it uses."""
    header = re.match(r"(--.*\n)*", text)
    assert header is not None
    code = text[header.end() :]
    told = _told(header.group())
    for kind in ("KEYS", "ARGV"):
        for number in sorted({int(found) for found in re.findall(kind + r"\[(\d+)\]", code)}):
            if not re.search(rf"(?<!\d){number}(?!\d)", told.get(kind, "")):
                yield f": the header does not name {kind}[{number}]"
    if "Returns" not in told:
        yield ": the header does not say what it Returns"


def _told(header: str) -> dict[str, str]:
    """What a header says of KEYS, ARGV and Returns; each lasts until the next begins."""
    told: dict[str, str] = {}
    current = ""
    for line in header.splitlines():
        begun = re.match(r"--\s*(KEYS|ARGV|Returns)\b", line)
        current = begun.group(1) if begun else current
        told[current] = told.get(current, "") + line[2:].strip() + "\n"
    return told


_BY_SUFFIX: dict[str, Callable[[str], Problems]] = {
    ".yml": _yaml,
    ".yaml": _yaml,
    ".toml": _toml,
    ".json": _json,
    ".lua": _lua,
}


if __name__ == "__main__":
    sys.exit(main())
