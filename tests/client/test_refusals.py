"""The client reads refusals without the generated code of google.rpc; the services write them with it."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold import refusals as client
from twofold.errors.v1.reason_pb2 import Reason
from twofold_chassis import refusals, status


def error(refusal: refusals.Refusal) -> grpc.aio.AioRpcError:
    """The error that a caller of a refused rpc gets."""
    return told(*status.trailers(refusal), code=status.code(refusal))


def told(*trailing: tuple[str, str | bytes], code: grpc.StatusCode = grpc.StatusCode.INTERNAL) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), "text for people")


def test_the_reason_of_a_refusal_is_one_of_the_closed_list() -> None:
    assert client.reason(error(refusals.HistoryChanged("restored"))) == Reason.REASON_HISTORY_CHANGED


@pytest.mark.parametrize("trailing", [(), (("twofold-reason", "REASON_OF_NEXT_YEAR"),)])
def test_what_is_no_reason_of_this_version_is_unspecified(trailing: tuple[tuple[str, str], ...]) -> None:
    assert client.reason(told(*trailing)) == Reason.REASON_UNSPECIFIED


def test_an_invalid_argument_names_its_field() -> None:
    assert client.field(error(refusals.InvalidField("agent.settings.model", "is too long"))) == "agent.settings.model"


def test_a_refusal_that_is_of_no_field_names_none() -> None:
    assert client.field(error(refusals.Busy("others write", retry_after_s=0.5))) == ""


@pytest.mark.parametrize("seconds", [0.000_000_001, 0.2, 1.0, 61.5])
def test_the_time_to_wait_comes_back_to_the_nanosecond(seconds: float) -> None:
    assert client.retry_after_s(error(refusals.Busy("others write", retry_after_s=seconds))) == pytest.approx(
        seconds, abs=1e-9
    )


def test_without_a_time_to_wait_there_is_none() -> None:
    assert client.retry_after_s(error(refusals.StoreUnavailable("down"))) is None


@given(st.text(min_size=1, max_size=300), st.floats(min_value=0.001, max_value=1e6))
def test_any_field_and_time_are_read_as_they_were_written(path: str, seconds: float) -> None:
    refusal = refusals.InvalidField(path, "breaks its rule")
    refusal.retry_after_s = seconds
    assert client.field(error(refusal)) == path
    assert client.retry_after_s(error(refusal)) == pytest.approx(seconds)


@given(st.binary(max_size=64))
def test_damaged_details_are_no_details(garbage: bytes) -> None:
    damaged = told(("grpc-status-details-bin", garbage))
    assert client.field(damaged) == ""
    assert client.retry_after_s(damaged) is None


@given(st.data())
def test_details_that_are_cut_off_are_read_up_to_there(data: st.DataObject) -> None:
    (_, whole) = status.trailers(refusals.InvalidField("thread_id", "is required"))[1]
    assert isinstance(whole, bytes)
    cut = data.draw(st.integers(min_value=0, max_value=len(whole)))
    assert client.field(told(("grpc-status-details-bin", whole[:cut]))) in ("", "thread_id")
