"""The contract as data: every rpc of every service, and what the comments of the protos promise of each field."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.message import Message

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "clients/python"
BUF = Path(sys.executable).parent / "buf"


@dataclass(frozen=True)
class Rpc:
    """One rpc. `room` is registry, memory or router."""

    name: str
    room: str
    request: type[Message]
    response: type[Message]
    streams: bool
    takes_stream: bool

    @property
    def path(self) -> str:
        """As it stands on the wire."""
        service, _, method = self.name.rpartition(".")
        return f"/{service}/{method}"


def rpcs() -> list[Rpc]:
    """All rpcs of all services."""
    return [_rpc(method) for file in _files() for service in file.services_by_name.values() for method in service.methods]


def services() -> dict[str, set[str]]:
    """The full names of the services, by room."""
    found: dict[str, set[str]] = {}
    for rpc in rpcs():
        found.setdefault(rpc.room, set()).add(rpc.name.rpartition(".")[0])
    return found


def fields_of(message: Message) -> Sequence[FieldDescriptor]:
    """The fields of a message as the contract describes them."""
    return cast("Sequence[FieldDescriptor]", message.DESCRIPTOR.fields)


def comment(full_name: str) -> str:
    """The comment above a message, field, service or rpc, as one line."""
    return _comments()[full_name]


def required(field: FieldDescriptor) -> bool:
    """Whether the contract says so without conditions."""
    return re.search(r"\bRequired\b(?! except| with| then)", comment(field.full_name)) is not None


def output_only(field: FieldDescriptor) -> bool:
    """Whether callers have no say in it."""
    return "Output only" in comment(field.full_name)


def _files() -> Iterator[FileDescriptor]:
    for path in sorted(CLIENT.glob("twofold/*/v1/*_pb2.py")):
        module = importlib.import_module(".".join(path.relative_to(CLIENT).with_suffix("").parts))
        yield module.DESCRIPTOR


def _rpc(method: MethodDescriptor) -> Rpc:
    return Rpc(
        name=method.full_name,
        room=method.full_name.split(".")[1],
        request=message_factory.GetMessageClass(method.input_type),
        response=message_factory.GetMessageClass(method.output_type),
        streams=method.server_streaming,
        takes_stream=method.client_streaming,
    )


@cache
def _comments() -> dict[str, str]:
    """All comments, by full name. The stubs hold none at run time: they are read from the protos by buf."""
    built = subprocess.run(
        [str(BUF), "build", "--as-file-descriptor-set", "--output", "-"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
    )
    found: dict[str, str] = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(built.stdout).file:
        if file.package.startswith("twofold."):
            for location in file.source_code_info.location:
                name = _name(file, list(location.path))
                if name is not None:
                    found[name] = " ".join(location.leading_comments.split())
    return found


def _name(file: descriptor_pb2.FileDescriptorProto, path: list[int]) -> str | None:
    """The full name of what stands at a path of descriptor.proto; None for what has no name of its own."""
    match path:
        case [4, message]:
            return f"{file.package}.{file.message_type[message].name}"
        case [4, message, 2, field]:
            described = file.message_type[message]
            return f"{file.package}.{described.name}.{described.field[field].name}"
        case [5, enum]:
            return f"{file.package}.{file.enum_type[enum].name}"
        case [6, service]:
            return f"{file.package}.{file.service[service].name}"
        case [6, service, 2, method]:
            served = file.service[service]
            return f"{file.package}.{served.name}.{served.method[method].name}"
    return None
