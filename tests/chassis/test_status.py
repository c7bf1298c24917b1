"""Refusals on the wire: one code per reason, the same that the contract promises, with details to branch on."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import twofold_chassis
import twofold_memory
import twofold_registry
import twofold_router
from twofold.errors.v1.reason_pb2 import Reason
from twofold_chassis import refusals, status
from twofold_chassis.refusals import Refusal

PROTO = Path(__file__).parents[2] / "protos" / "twofold" / "errors" / "v1" / "reason.proto"


def promised() -> dict[str, str]:
    """Each reason's code, as its comment in the contract says."""
    codes: dict[str, str] = {}
    code = ""
    for line in PROTO.read_text(encoding="utf-8").splitlines():
        if comment := re.match(r"\s*// ([A-Z_]{6,})\. ", line):
            code = comment[1]
        if value := re.match(r"\s*(REASON_\w+) = \d+;", line):
            codes[value[1]], code = code, ""
    return codes


def kinds(kind: type[Refusal] = Refusal) -> Iterator[type[Refusal]]:
    """Every refusal of every room."""
    for package in (twofold_chassis, twofold_memory, twofold_registry, twofold_router):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", "env")) and ".versions" not in module.name:
                importlib.import_module(module.name)
    found = [kind]
    for one in found:
        found += [other for other in one.__subclasses__() if other not in found]
    yield from found


def test_every_reason_has_a_code_in_its_comment() -> None:
    codes = promised()
    assert set(codes) == set(Reason.keys())
    for reason, code in codes.items():
        assert reason == "REASON_UNSPECIFIED" or code in grpc.StatusCode.__members__, reason


@pytest.mark.parametrize("kind", sorted(kinds(), key=str), ids=str)
def test_every_refusal_gets_the_code_that_the_contract_promises_for_its_reason(kind: type[Refusal]) -> None:
    reason = Reason.Name(kind.reason)
    if reason == "REASON_INTERNAL":
        # The kinds themselves are not raised: they have no reason of their own.
        assert kind is Refusal or kind.__subclasses__(), f"{kind.__name__} has no reason"
        return
    assert status.code(kind.__new__(kind)).name == promised()[reason]


def test_a_refusal_carries_its_reason_twice_and_all_details() -> None:
    refusal = refusals.InvalidField("messages[3].content", "has 7 bytes too many")
    trailers = dict(status.trailers(refusal))
    assert trailers["twofold-reason"] == "REASON_INVALID_FIELD"
    details = unpacked(trailers["grpc-status-details-bin"])
    assert details["ErrorInfo"].domain == "twofold"
    assert details["ErrorInfo"].reason == "REASON_INVALID_FIELD"
    (violation,) = details["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("messages[3].content", "has 7 bytes too many")
    busy = unpacked(
        dict(status.trailers(refusals.Busy("wait", retry_after_s=1.5, thread_id="t")))["grpc-status-details-bin"]
    )
    assert busy["RetryInfo"].retry_delay.ToNanoseconds() == 1_500_000_000
    assert dict(busy["ErrorInfo"].metadata) == {"thread_id": "t"}
    assert "BadRequest" not in busy


def unpacked(encoded: str | bytes) -> dict[str, Any]:
    assert isinstance(encoded, bytes)
    found: dict[str, Any] = {}
    for packed in status_pb2.Status.FromString(encoded).details:
        name = packed.TypeName().rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name).FromString(packed.value)
    return found


def test_a_used_up_quota_is_named_with_whose_it_is() -> None:
    refusal = refusals.QuotaExhausted("too much", [refusals.Quota("user:ada", "47 of 47 an hour")], retry_after_s=2)
    told = dict(status.trailers(refusal))[status.DETAILS_KEY]
    assert isinstance(told, bytes)
    details = status_pb2.Status.FromString(told).details
    failure, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    assert details[1].Unpack(failure)
    assert details[2].Unpack(retry)
    assert [(one.subject, one.description) for one in failure.violations] == [("user:ada", "47 of 47 an hour")]
    assert retry.retry_delay.seconds == 2
