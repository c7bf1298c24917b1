"""Whatever breaks the rule of a field is refused by the field's name and not stored: every field of every rpc."""

import re
from collections.abc import Sequence

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.house.bad_requests import BadRequest, bad_requests
from tests.house.conftest import House
from tests.house.contract import Rpc, rpcs
from tests.house.examples import EXAMPLES, World

RPCS = {rpc.name: rpc for rpc in rpcs()}
# Below the path of a map or a list of values, the entry may be named.
ENTRY = r"(\[.*\]|\.key|\.value)?"


def test_every_rpc_has_an_example() -> None:
    assert set(EXAMPLES) == set(RPCS)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
async def test_bad_input_is_refused_by_the_name_of_its_field(name: str, house: House, world: World) -> None:
    rpc, example = RPCS[name], EXAMPLES[name](world)
    before = await house.contents()
    tried = list(bad_requests(name, example))
    broken = [promise for bad in tried if (promise := await broken_promise(house, rpc, bad)) is not None]
    changed = {table for table, content in (await house.contents()).items() if before[table] != content}
    accepted = await house.call(rpc, example)
    assert tried or not rpc.request.DESCRIPTOR.fields
    assert not broken, f"{len(broken)} of {len(tried)}:\n" + "\n".join(broken)
    assert not changed, f"stored something: {changed}"
    # That the good request is taken shows that it was the change that was refused. (Nobody listens at the agent's URL.)
    assert accepted is None or "REASON_AGENT_UNREACHABLE" in str(accepted.trailing_metadata()), accepted


async def broken_promise(house: House, rpc: Rpc, bad: BadRequest) -> str | None:
    """None if the request is refused as it must be; else what was got instead."""
    error = await house.call(rpc, bad.request)
    if error is None:
        return f"{bad.what}: accepted"
    reason = dict(error.trailing_metadata() or ()).get("twofold-reason")
    if reason not in bad.reasons:
        return f"{bad.what}: {error.code().name} {reason}: {error.details()}"
    if reason == "REASON_ETAG_MISMATCH":
        return None if error.code() is grpc.StatusCode.ABORTED else f"{bad.what}: {error.code().name}"
    named = violations(error)
    if error.code() is not grpc.StatusCode.INVALID_ARGUMENT or not is_one_of(named, bad.fields):
        return f"{bad.what}: {error.code().name}, and the field is named {named}"
    return None


def violations(error: grpc.aio.AioRpcError) -> list[str]:
    """The fields that google.rpc.BadRequest names."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it reads code, details and trailers, which an aio error has
    told = error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        if detail.Unpack(told):
            return [violation.field for violation in told.field_violations]
    return []


def is_one_of(named: Sequence[str], expected: Sequence[str]) -> bool:
    """Whether exactly one field is named, and it is an expected one."""
    return len(named) == 1 and any(re.fullmatch(re.escape(field) + ENTRY, named[0], re.DOTALL) for field in expected)
