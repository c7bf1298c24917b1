"""The contract is the manual, and all of it is served."""

import subprocess
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from tests.house.conftest import House
from tests.house.contract import BUF, ROOT, Rpc, comment, rpcs, services
from twofold.errors.v1.reason_pb2 import Reason

_OF_THE_CHASSIS = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


def messages_of(rpc: Rpc) -> dict[str, Any]:
    """The messages of an rpc and all of ours inside them."""
    found: dict[str, Any] = {}
    waiting: list[Any] = [rpc.request.DESCRIPTOR, rpc.response.DESCRIPTOR]
    while waiting:
        kind = waiting.pop()
        ours = kind.full_name.startswith("twofold.") and not kind.GetOptions().map_entry
        if ours and kind.full_name not in found:
            found[kind.full_name] = kind
            waiting += [field.message_type for field in kind.fields if field.message_type is not None]
    return found


@pytest.mark.parametrize("command", [["lint"], ["format", "--diff", "--exit-code"]])
def test_the_protos_pass(command: list[str]) -> None:
    done = subprocess.run([str(BUF), *command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rpc", rpcs(), ids=lambda rpc: rpc.name)
def test_every_rpc_message_and_field_is_explained(rpc: Rpc) -> None:
    names = [rpc.name, rpc.name.rpartition(".")[0]]
    for name, kind in messages_of(rpc).items():
        names += [name, *(f"{name}.{field.name}" for field in kind.fields)]
    assert [name for name in names if not comment(name)] == []


@pytest.mark.parametrize("rpc", rpcs(), ids=lambda rpc: rpc.name)
def test_every_reason_that_an_rpc_names_is_in_the_closed_list(rpc: Rpc) -> None:
    named = {word.strip("(),.:;") for word in comment(rpc.name).split() if word.strip("(").startswith("REASON_")}
    assert named <= set(Reason.keys())


@pytest.mark.parametrize("room", sorted(services()))
async def test_a_room_serves_its_services_and_no_others(room: str, house: House) -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    call = house.channels[room].stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = [answer async for answer in call(iter([asked]))]
    served = {service.name for service in answer.list_services_response.service}
    assert served - _OF_THE_CHASSIS == services()[room]
    assert served >= _OF_THE_CHASSIS


@pytest.mark.parametrize("rpc", rpcs(), ids=lambda rpc: rpc.name)
async def test_nothing_in_the_contract_is_unimplemented(rpc: Rpc, house: House) -> None:
    error = await house.call(rpc, rpc.request())
    assert error is None or error.code() not in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL), error
