"""Agents over HTTP: one request a turn, its answer taken as it comes, within the agent's time and our bounds."""

import asyncio
import contextlib
import io
import ipaddress
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from twofold_chassis import call
from twofold_router import agent_protocol
from twofold_router.agent_protocol import EventStream, Hearing
from twofold_router.agents import AgentFailed, AgentTimeout, AgentUnreachable, Answer, Limits, Prompt, Usage
from twofold_router.targets import UrlForbidden

Judge = Callable[[str], str | None]
"""Why an address may not be dialled; None if it may."""

Value = TypeVar("Value")

_PATH = "/v1/chat/completions"
_SSE, _JSON = "text/event-stream", "application/json"
# Common servers close an idle connection after 5 s: we let go first, or a request would meet a closing one.
_KEEPALIVE_S = 4.0
# What comes behind the end of a stream is waited for only this long: with it the connection can be used again.
_TAIL_S = 0.05
# JSON may write one byte of text as six, and its frame around a single token takes some hundreds.
_BODY_FACTOR = 8
_STREAM_FACTOR = 256


class JudgingResolver(AbstractResolver):
    """Resolves names, and gives no address out that may not be dialled: what was judged is what is dialled."""

    def __init__(self, judge: Judge, resolver: AbstractResolver | None = None) -> None:
        self._judge = judge
        self._resolver = resolver or ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for address in found:  # one is enough: whoever answers for the name chooses the order
            _require_allowed(self._judge, address["host"])
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _require_allowed(judge: Judge, ip: str) -> None:
    problem = judge(ip)
    if problem:
        raise UrlForbidden(f"the agent's host has an address that {problem}")


@contextlib.asynccontextmanager
async def http_session(
    *, connect_timeout_s: float, judge: Judge, resolver: AbstractResolver | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """The one session for all agents: no cookies (they would travel between tenants), no proxies of the environment."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S, resolver=JudgingResolver(judge, resolver)),
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout_s, sock_connect=connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )
    async with session:
        yield session


class HttpAgents:
    """Agents that speak the chat completions protocol, streamed or in one piece."""

    def __init__(self, session: aiohttp.ClientSession, *, judge: Judge, answer_bytes_max: int) -> None:
        self._session = session
        self._judge = judge
        self._tails: set[asyncio.Task[None]] = set()
        self._answer_bytes_max = answer_bytes_max

    async def answer(self, prompt: Prompt) -> AsyncGenerator[str | Usage | Answer, None]:
        """Pieces of the answer's text as they come, what it consumed whenever the agent says so, the Answer last."""
        patience = _Patience(prompt.limits)
        self._require_literal_allowed(prompt.url)
        with _refusing():
            response, answered = await patience.wait(self._post(prompt)), False
            try:
                hearing = Hearing(answer_bytes_max=self._answer_bytes_max)
                async with contextlib.aclosing(self._pieces(response, hearing, patience)) as pieces:
                    async for piece in pieces:
                        yield piece
                answer, answered = hearing.answer(), True
                yield answer
            finally:
                if answered:
                    self._let_go(response)
                else:
                    response.close()  # hangs up

    async def _post(self, prompt: Prompt) -> aiohttp.ClientResponse:
        return await self._session.post(
            prompt.url.rstrip("/") + _PATH,
            data=io.BytesIO(agent_protocol.request_body(prompt)),  # as a file: its size is known, and it is sent in parts
            headers={
                "accept": f"{_SSE}, {_JSON}",
                "accept-encoding": "identity",
                "content-type": _JSON,
                call.REQUEST_ID_KEY: call.current().request_id,
            },
            allow_redirects=False,
        )

    def _let_go(self, response: aiohttp.ClientResponse) -> None:
        """Nobody waits for what comes behind an answer."""
        task = asyncio.create_task(_finish(response))
        self._tails.add(task)
        task.add_done_callback(self._tails.discard)

    def _require_literal_allowed(self, url: str) -> None:
        """An address that stands in the URL is not resolved, so it is judged here."""
        with contextlib.suppress(ValueError):
            _require_allowed(self._judge, str(ipaddress.ip_address(URL(url).host or "")))

    async def _pieces(
        self, response: aiohttp.ClientResponse, hearing: Hearing, patience: "_Patience"
    ) -> AsyncGenerator[str | Usage, None]:
        kind = _kind(response)
        if kind == _JSON:
            if text := hearing.whole(await self._whole(response, patience)):
                yield text
            return
        stream = EventStream(event_bytes_max=_BODY_FACTOR * self._answer_bytes_max)
        body = _Body(response, patience, bytes_max=_STREAM_FACTOR * self._answer_bytes_max)
        while not hearing.done and not body.ended:
            chunk = await body.chunk()
            for event in stream.end() if body.ended else stream.feed(chunk):
                known = hearing.usage
                if text := hearing.event(event):
                    yield text
                if hearing.usage is not known and hearing.usage is not None:
                    yield hearing.usage
                if hearing.done:
                    break
            if hearing.begun:
                patience.heard()

    async def _whole(self, response: aiohttp.ClientResponse, patience: "_Patience") -> bytes:
        body = _Body(response, patience, bytes_max=_BODY_FACTOR * self._answer_bytes_max)
        chunks = []
        while not body.ended:
            chunks.append(await body.chunk())
        return b"".join(chunks)


class _Body:
    """What an agent sends, piece by piece, within a bound."""

    def __init__(self, response: aiohttp.ClientResponse, patience: "_Patience", *, bytes_max: int) -> None:
        self._content = response.content
        self._patience = patience
        self._bytes_left = bytes_max
        self.ended = False

    async def chunk(self) -> bytes:
        """The next piece; an empty one when there is no more."""
        chunk = await self._patience.wait(self._content.readany())
        self.ended = not chunk
        self._bytes_left -= len(chunk)
        if self._bytes_left < 0:
            raise agent_protocol.too_large()
        return chunk


class _Patience:
    """How long the agent may still be waited for. Time in which the caller reads slowly is not the agent's."""

    def __init__(self, limits: Limits) -> None:
        self._turn_s = limits.turn_s
        self._first_token_s = limits.first_token_s
        self._waited_s = 0.0
        self._heard = False

    def heard(self) -> None:
        """The first token has come."""
        self._heard = True

    async def wait(self, answer: Awaitable[Value]) -> Value:
        """The answer, if it comes within the time that is left."""
        limit_s = self._turn_s if self._heard else min(self._first_token_s, self._turn_s)
        began = time.monotonic()
        try:
            async with asyncio.timeout(limit_s - self._waited_s):
                return await answer
        finally:
            self._waited_s += time.monotonic() - began


def _kind(response: aiohttp.ClientResponse) -> str:
    if not 200 <= response.status < 300:
        raise AgentFailed(f"the agent answered with HTTP status {response.status}", http_status=str(response.status))
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise AgentFailed("the agent answered with an encoding that it was not asked for")
    if response.content_type not in (_SSE, _JSON):
        raise AgentFailed("the agent answered with neither an event stream nor JSON")
    return response.content_type


async def _finish(response: aiohttp.ClientResponse) -> None:
    try:
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(_TAIL_S):
                await response.content.readany()
    finally:
        response.close()  # hangs up, unless everything has been read


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """What goes wrong between us and the agent, as refusals. What it said itself never appears in them."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL):
        raise AgentUnreachable("the agent cannot be reached", retry_after_s=1.0) from None
    except TimeoutError:
        raise AgentTimeout("the agent did not answer within its time") from None
    except aiohttp.ClientError:
        raise AgentFailed("the agent hung up or broke the protocol") from None
