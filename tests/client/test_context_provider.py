"""The context provider, as the code around an agent meets it."""

import grpc
import pytest

from tests.client.conftest import Connect
from tests.client.fakes import Context
from twofold import ContextProvider, ContextUnavailableWarning
from twofold.memory.v1.message_pb2 import Durability, Message, ReadLevel, Role
from twofold_chassis import refusals
from twofold_memory.threads import TurnOnItsWay

DOWN = refusals.StoreUnavailable("Postgres does not answer")
HELLO = Message(role=Role.ROLE_USER, content="Hello")


async def test_the_first_context_of_a_thread_is_verified(connect: Connect) -> None:
    memory = Context()
    provider = ContextProvider(await connect(memory), "acme", "t", "ada", message_count_max=7, token_count_max=900)
    context = await provider.invoking()
    (request,) = memory.requests
    assert context.text == "remembered"
    assert request.read_level == ReadLevel.READ_LEVEL_VERIFIED
    assert (request.workspace_id, request.thread_id, request.user_id) == ("acme", "t", "ada")
    assert (request.message_count_max, request.token_count_max) == (7, 900)


async def test_after_it_the_last_token_is_passed(connect: Connect) -> None:
    memory = Context()
    provider = ContextProvider(await connect(memory), "acme", "t")
    await provider.invoking()
    await provider.invoked([HELLO], [Message(role=Role.ROLE_ASSISTANT, content="Hi")])
    await provider.invoking()
    assert memory.requests[-1].read_level == ReadLevel.READ_LEVEL_AT_LEAST
    assert memory.requests[-1].thread_token == b"t2"


async def test_a_history_that_changed_is_read_anew(connect: Connect) -> None:
    memory = Context()
    client = await connect(memory)
    provider = ContextProvider(client, "acme", "t")
    await provider.invoking()
    memory.refusals = [refusals.HistoryChanged("restored from a backup")]
    await provider.invoking()
    levels = [request.read_level for request in memory.requests]
    assert levels == [ReadLevel.READ_LEVEL_VERIFIED, ReadLevel.READ_LEVEL_AT_LEAST, ReadLevel.READ_LEVEL_VERIFIED]
    assert memory.requests[-1].thread_token == b""


async def test_an_exchange_is_kept_as_it_was_said(connect: Connect) -> None:
    memory = Context()
    provider = ContextProvider(await connect(memory), "acme", "t", "ada")
    answer = Message(role=Role.ROLE_ASSISTANT, content="Hi")
    kept = await provider.invoked([HELLO], [answer], request_id="turn-1")
    (request,) = memory.requests
    assert kept.turn_id == "turn-1"
    assert (list(request.request_messages), list(request.response_messages)) == ([HELLO], [answer])


async def test_an_exchange_behind_a_journaled_one_says_so_and_waits_for_it(connect: Connect) -> None:
    """It would overtake it where the journal has lost it for a moment."""
    memory = Context()
    provider = ContextProvider(await connect(memory), "acme", "t")
    await provider.invoked([HELLO])
    await provider.invoked([HELLO])
    memory.durability = Durability.DURABILITY_JOURNALED
    await provider.invoked([HELLO])
    memory.durability = Durability.DURABILITY_COMMITTED
    memory.refusals = [TurnOnItsWay("not there yet")]
    await provider.invoked([HELLO])
    await provider.invoked([HELLO])
    assert [request.after_token for request in memory.requests] == [b"", b"", b"", b"t3", b"t3", b""]


async def test_an_unreachable_memory_is_an_error(connect: Connect) -> None:
    provider = ContextProvider(await connect(Context([DOWN] * 4)), "acme", "t")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await provider.invoking()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_who_asked_for_it_goes_on_without_context_and_is_warned(connect: Connect) -> None:
    provider = ContextProvider(await connect(Context([DOWN] * 4)), "acme", "t", stateless_when_unavailable=True)
    with pytest.warns(ContextUnavailableWarning, match="thread 't'"):
        context = await provider.invoking()
    assert context.text == ""
    assert not context.messages


async def test_only_unavailable_is_gone_on_without(connect: Connect) -> None:
    refusal = refusals.InvalidField("thread_id", "is required")
    provider = ContextProvider(await connect(Context([refusal])), "acme", "", stateless_when_unavailable=True)
    with pytest.raises(grpc.aio.AioRpcError):  # a warning would be another error: pytest is told so in pyproject.toml
        await provider.invoking()


async def test_an_exchange_that_cannot_be_kept_is_always_an_error(connect: Connect) -> None:
    provider = ContextProvider(await connect(Context([DOWN] * 4)), "acme", "t", stateless_when_unavailable=True)
    with pytest.raises(grpc.aio.AioRpcError):
        await provider.invoked([HELLO])


async def test_a_context_missed_does_not_lose_the_token(connect: Connect) -> None:
    memory = Context()
    provider = ContextProvider(await connect(memory), "acme", "t", stateless_when_unavailable=True)
    await provider.invoking()
    memory.refusals = [DOWN] * 4
    with pytest.warns(ContextUnavailableWarning):
        await provider.invoking()
    await provider.invoking()
    assert memory.requests[-1].thread_token == b"t1"
