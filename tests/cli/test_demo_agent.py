"""The demo agent: what it says, and that it is a real process that speaks the protocol."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from twofold_cli.demo_agent import DemoAgent, answer, serving


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


async def complete(http: aiohttp.ClientSession, url: str, text: str, **more: object) -> aiohttp.ClientResponse:
    return await http.post(f"{url}/v1/chat/completions", json={"model": "m", "messages": [user(text)], **more})


async def events(response: aiohttp.ClientResponse) -> list[str]:
    return [event.removeprefix("data: ") for event in (await response.text()).split("\n\n") if event]


def test_a_name_that_is_told_is_greeted() -> None:
    assert answer([user("Hello. My name is Ada.")]) == "Nice to meet you, Ada."


def test_a_name_is_remembered_from_the_block_of_the_previous_conversation() -> None:
    block = system("Be kind.\n\nPrevious conversation:\nuser: My name is Ada.\nassistant: Nice to meet you, Ada.")
    assert answer([block, user("What is my name?")]) == "Your name is Ada."


def test_a_name_is_remembered_from_earlier_messages() -> None:
    earlier = [user("My name is Ada."), {"role": "assistant", "content": None}]
    assert answer([*earlier, user("what's my name")]) == "Your name is Ada."


def test_a_name_that_was_not_told_is_not_known() -> None:
    assert answer([user("What is my name?")]) == "You have not told me your name yet."


def test_only_what_the_user_said_names_the_user() -> None:
    block = system("Previous conversation:\nuser: Hi\\nassistant: My name is Bot.\nassistant: my name is Bot")
    assert answer([block, user("What did I say first?")]) == 'You said first: "Hi\nassistant: My name is Bot."'
    assert answer([system("Previous conversation:\nassistant: my name is Bot"), user("What is my name?")]) == (
        "You have not told me your name yet."
    )


def test_a_preference_is_read_from_its_block() -> None:
    block = system("Previous conversation:\nuser: Hi\n\nUser preferences:\npreferred_language: Python\ntone: dry")
    assert answer([block, user("Which language should I use?")]) == "You prefer Python."
    assert answer([block, user("Which editor should I use?")]) == "You have not told me which editor you prefer."


def test_the_first_thing_that_was_said_is_quoted() -> None:
    assert answer([user("One"), user("Two"), user("What did I say first?")]) == 'You said first: "One"'
    assert answer([user("What did I say first?")]) == "You have not said anything before."


def test_anything_else_is_echoed_with_how_much_it_sees() -> None:
    assert answer([user("Hello.")]) == 'You said: "Hello." I see 0 earlier messages.'
    assert answer([user("Hi."), user("Hello.")]) == 'You said: "Hello." I see 1 earlier message.'


async def test_a_streamed_answer_comes_word_by_word_with_usage_at_the_end(http: aiohttp.ClientSession) -> None:
    async with serving(DemoAgent()) as url:
        response = await complete(http, url, "Hello.", stream=True, stream_options={"include_usage": True})
        assert response.content_type == "text/event-stream"
        *chunks, done = await events(response)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    words = [chunk["choices"][0]["delta"].get("content", "") for chunk in parsed if chunk["choices"]]
    assert "".join(words) == 'You said: "Hello." I see 0 earlier messages.'
    assert len(words) > 5
    assert parsed[-1]["usage"] == {"prompt_tokens": 1, "completion_tokens": 8, "total_tokens": 9}


async def test_an_answer_in_one_piece_has_the_same_text(http: aiohttp.ClientSession) -> None:
    async with serving(DemoAgent()) as url:
        completion = await (await complete(http, url, "Hello.")).json()
    assert completion["choices"][0]["message"]["content"] == answer([user("Hello.")])
    assert completion["choices"][0]["finish_reason"] == "stop"


async def test_faults_are_shown_only_if_they_are_allowed(http: aiohttp.ClientSession) -> None:
    async with serving(DemoAgent()) as url:
        assert (await complete(http, url, "fault: http 500")).status == 200
    async with serving(DemoAgent(allow_faults=True)) as url:
        assert (await complete(http, url, "fault: http 500")).status == 500
        assert "{this is no JSON" in await events(await complete(http, url, "fault: bad json", stream=True))
        cut = await complete(http, url, "fault: cut", stream=True)
        with pytest.raises(aiohttp.ClientError):
            await cut.read()


async def test_a_body_that_is_no_request_is_refused(http: aiohttp.ClientSession) -> None:
    async with serving(DemoAgent()) as url:
        for body in (b"", b"[]", b'{"messages": []}', b'{"messages": [1]}'):
            assert (await http.post(f"{url}/v1/chat/completions", data=body)).status == 400


async def test_it_is_a_process_that_prints_its_url_and_ends_when_told_to(http: aiohttp.ClientSession) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "twofold_cli.demo_agent", "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        assert (await (await http.get(f"{url}/health")).json())["status"] == "ok"
        process.terminate()
        assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
