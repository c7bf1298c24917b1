"""The HTTP client for agents, where a whole router would hide what happens."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from tests.router.scripted import Heard, ScriptedAgents, delta, finish, sse
from twofold_chassis.addresses import forbidden_address
from twofold_router.agents import AgentFailed, AgentUnreachable, Answer, Limits, Message, Prompt, Usage
from twofold_router.agents_http import HttpAgents, Judge, http_session
from twofold_router.targets import UrlForbidden


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
        asked = HttpAgents(session, judge=anywhere, answer_bytes_max=2**20).answer(
            prompt(agents.agent("a", eager), Limits(1, 1))
        )
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


class Names(AbstractResolver):
    """Answers for every name with these addresses, one more behind the other each time it is asked."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        self.asked.append(host)
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(hostname=host, host=ip, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST)
            for ip in addresses
        ]

    async def close(self) -> None: ...


async def ask(url: str, judge: Judge, resolver: AbstractResolver | None = None) -> list[object]:
    async with http_session(connect_timeout_s=5, judge=judge, resolver=resolver) as session:
        http = HttpAgents(session, judge=judge, answer_bytes_max=100)
        return [piece async for piece in http.answer(prompt(url, Limits(5, 5)))]


def strictly(ip: str) -> str | None:
    return forbidden_address(ip)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "0.0.0.0",
        "169.254.169.254",
        "[fe80::1]",
        "[::ffff:127.0.0.1]",
        "224.0.0.1",
        "localhost",
        "localhost.",
        "2130706433",
        "0x7f.1",
        "127.1",
    ],
)
async def test_an_address_that_agents_may_not_have_is_not_dialled_however_it_is_written(
    agents: ScriptedAgents, host: str
) -> None:
    port = agents.agent("a").rpartition(":")[2]
    with pytest.raises((UrlForbidden, AgentUnreachable)) as told:
        await ask(f"http://{host}:{port}", strictly)
    assert not agents.heard
    if host not in ("localhost.", "2130706433", "0x7f.1", "127.1"):  # these some machines do not resolve at all
        assert told.type is UrlForbidden


@pytest.mark.parametrize("addresses", [["169.254.169.254"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1"]])
async def test_a_name_that_leads_to_a_forbidden_address_only_when_it_is_dialled_is_refused(
    agents: ScriptedAgents, addresses: list[str]
) -> None:
    port = agents.agent("a").rpartition(":")[2]
    names = Names(addresses)
    with pytest.raises(UrlForbidden):
        await ask(f"http://agent.example.com:{port}", strictly, names)
    assert names.asked == ["agent.example.com"]
    assert not agents.heard


async def test_the_address_that_was_judged_is_the_one_that_is_dialled(agents: ScriptedAgents) -> None:
    """Who answers otherwise the second time it is asked (DNS rebinding) is asked once."""
    judged: list[str] = []

    def judge(ip: str) -> str | None:
        judged.append(ip)
        return forbidden_address(ip, allow_loopback=True)

    names = Names(["127.0.0.1"], ["169.254.169.254"])
    url = agents.agent("a").replace("127.0.0.1", "agent.example.com")
    assert (await ask(url, judge, names))[:3] == ["Hello", ", ", "Hi."]
    assert (names.asked, judged) == (["agent.example.com"], ["127.0.0.1"])


async def test_a_redirection_is_not_followed(agents: ScriptedAgents) -> None:
    async def elsewhere(heard: Heard) -> web.StreamResponse:
        return web.Response(status=307, headers={"location": f"{agents.url}/b/v1/chat/completions"})

    agents.agent("b")
    with pytest.raises(AgentFailed):
        await ask(agents.agent("a", elsewhere), anywhere)
    assert len(agents.heard) == 1


async def test_what_an_agent_consumed_is_told_as_soon_as_it_says_so(agents: ScriptedAgents) -> None:
    async def counting(heard: Heard) -> web.StreamResponse:
        first = {**delta("a"), "usage": {"prompt_tokens": 5, "completion_tokens": 1}}
        second = {**delta("b"), "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        return await heard.say(first, second, finish())

    said = await ask(agents.agent("a", counting), anywhere)
    assert said[:-1] == ["a", Usage(5, 1), "b", Usage(5, 2)]
