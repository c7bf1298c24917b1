"""What a person said about the stack, in `.env` and in the environment: read, and refused where it makes no sense."""

import os
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from twofold_chassis.start import StartError

ENV_FILE = Path(".env")
_GROUPS = ("DATABASE", "REDIS", "REGISTRY", "MEMORY", "ROUTER", "LOG")
# What says where a server of the person's is, by the setting that names it. Without that, the embedded one is used.
_ADDRESSES = {
    "DATABASE__URL": ("DATABASE__MIGRATE_URL", "DATABASE__SYSTEM_URL", "DATABASE__REPLICA_URL", "DATABASE__DIRECT_URL"),
    "REDIS__HOST": ("REDIS__PORT", "REDIS__USERNAME", "REDIS__PASSWORD", "REDIS__DB", "REDIS__TLS"),
}


def person_environment() -> dict[str, str]:
    """What the services would read by themselves: `.env` here, and the environment, which wins. Raises StartError."""
    return _in_capitals(_written(ENV_FILE)) | _in_capitals(os.environ)


def bare_environment() -> dict[str, str]:
    """The environment without any of our settings, all of which have two underscores: for tests."""
    return {name: value for name, value in os.environ.items() if "__" not in name}


def settled(environment: Mapping[str, str]) -> dict[str, str]:
    """Without the empty addresses of servers that are not named. Raises StartError if one is not empty."""
    kept = dict(environment)
    for server, details in _ADDRESSES.items():
        if kept.get(server):
            continue
        for name in (server, *details):
            if kept.pop(name, ""):
                raise StartError(
                    f"{name} is set, but {server} is not: set both to use a server of yours, neither for the embedded one"
                )
    return kept


def _in_capitals(environment: Mapping[str, str]) -> dict[str, str]:
    """The services read their settings in any case: here each has one name."""
    return {_name(name): value for name, value in environment.items()}


def _name(name: str) -> str:
    group, joint, _ = name.partition("__")
    return name.upper() if joint and group.upper() in _GROUPS else name


def _written(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    text = _text(path)
    for binding in parse_stream(StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            # The parser counts the empty lines before a statement to it.
            blank = len(binding.original.string) - len(binding.original.string.lstrip())
            line = binding.original.line + binding.original.string[:blank].count("\n")
            raise StartError(f"line {line} of {path.absolute()} is not NAME=value")
    return {name: value for name, value in dotenv_values(stream=StringIO(text)).items() if value is not None}


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StartError(f"{path.absolute()} cannot be read: {error.strerror or error}") from None
    try:
        text = content.decode("utf-8-sig")
        wrong = content.find(b"\0")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong < 0:
        return text
    line = content.count(b"\n", 0, wrong) + 1
    raise StartError(f"line {line} of {path.absolute()} is not UTF-8 text")
