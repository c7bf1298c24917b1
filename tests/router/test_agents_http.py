"""The HTTP client for agents, where a whole router would hide what happens."""

import asyncio
from contextlib import aclosing

import pytest
from aiohttp import web

from tests.router.scripted import Heard, ScriptedAgents, delta, finish, sse
from twofold_router.agents import Answer, Limits, Message, Prompt, Usage
from twofold_router.agents_http import HttpAgents, http_session


def anywhere(ip: str) -> str | None:
    return None


def prompt(url: str, limits: Limits) -> Prompt:
    return Prompt("agent", url, "model", "ada", (Message("user", "Hi"),), limits)


async def test_a_caller_that_does_not_read_holds_the_agent_back_and_is_not_counted_as_its_slowness(
    agents: ScriptedAgents,
) -> None:
    written = 0

    async def eager(heard: Heard) -> web.StreamResponse:
        nonlocal written
        response = await heard.stream()
        for _ in range(1000):
            await response.write(b": " + b"x" * 65536 + b"\n" + sse(delta("x" * 1000)))
            written += 1
        await response.write(sse(finish()))
        return response

    async with http_session(connect_timeout_s=5, judge=anywhere) as session:
        asked = HttpAgents(session, judge=anywhere, answer_bytes_max=2**20).answer(prompt(agents.agent("a", eager), Limits(1, 1)))
        async with aclosing(asked) as pieces:
            assert await anext(pieces) == "x" * 1000
            await asyncio.sleep(1.3)
            assert written < 500
            *texts, answer = [piece async for piece in pieces]
    assert isinstance(answer, Answer)
    assert len(texts) == 999


async def test_cookies_of_one_agent_do_not_reach_another(agents: ScriptedAgents) -> None:
    async def sweet(heard: Heard) -> web.StreamResponse:
        response = web.json_response({"choices": [{"message": {"content": "x"}}]})
        response.set_cookie("tenant", "one", path="/")
        return response

    async with http_session(connect_timeout_s=5, judge=anywhere) as session:
        http = HttpAgents(session, judge=anywhere, answer_bytes_max=100)
        for name in ("one", "two"):
            url = agents.agent(name, sweet).replace("127.0.0.1", "localhost")  # a jar takes no cookies from an address
            said = [piece async for piece in http.answer(prompt(url, Limits(5, 5)))]
            assert said[:-1] == ["x"]
    assert "cookie" not in agents.heard[-1].request.headers


async def test_a_proxy_of_the_environment_is_not_used(agents: ScriptedAgents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with http_session(connect_timeout_s=5, judge=anywhere) as session:
        http = HttpAgents(session, judge=anywhere, answer_bytes_max=100)
        said = [piece async for piece in http.answer(prompt(agents.agent("a") + "/", Limits(5, 5)))]
    assert said[:-1] == ["Hello", ", ", "Hi.", Usage(7, 3)]
