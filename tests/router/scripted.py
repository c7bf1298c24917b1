"""Agents that do as a test says: one HTTP server, and under it a path for each agent."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

Handler = Callable[["Heard"], Awaitable[web.StreamResponse]]


class Heard:
    """One request that an agent got, and the means to answer it."""

    def __init__(self, request: web.Request, body: dict[str, Any]) -> None:
        self.request = request
        self.body = body
        self.hung_up = asyncio.Event()

    @property
    def system(self) -> str:
        """The text of the system message."""
        return "".join(message["content"] for message in self.body["messages"] if message["role"] == "system")

    async def stream(self) -> web.StreamResponse:
        """Begins a stream of events."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(self.request)
        return response

    async def say(self, *events: object) -> web.StreamResponse:
        """A whole stream of the given events and its end."""
        response = await self.stream()
        for event in events:
            await response.write(sse(event))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def sse(event: object) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def delta(text: str | None = None, **more: object) -> dict[str, object]:
    said = dict(more) if text is None else {"content": text, **more}
    return {"choices": [{"index": 0, "delta": said, "finish_reason": None}]}


def finish(reason: str = "stop") -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def usage(read: int, written: int) -> dict[str, object]:
    return {"choices": [], "usage": {"prompt_tokens": read, "completion_tokens": written}}


class ScriptedAgents:
    """The server. An agent without a script of its own says "Hello, <user's words>." in three pieces."""

    def __init__(self, url: str = "") -> None:
        self.url = url
        self.reset()

    def reset(self) -> None:
        self.scripts: dict[str, Handler] = {}
        self.heard: list[Heard] = []

    def agent(self, name: str, script: Handler | None = None) -> str:
        """The URL of an agent that acts by the script."""
        self.scripts[name] = script or _polite
        return f"{self.url}/{name}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        heard = Heard(request, await request.json())
        self.heard.append(heard)
        try:
            return await self.scripts[request.match_info["name"]](heard)
        except (asyncio.CancelledError, ConnectionResetError):
            heard.hung_up.set()
            raise


async def _polite(heard: Heard) -> web.StreamResponse:
    said = heard.body["messages"][-1]["content"]
    return await heard.say(delta("Hello"), delta(", "), delta(f"{said}."), finish(), usage(7, 3))


@contextlib.asynccontextmanager
async def scripted_agents() -> AsyncIterator[ScriptedAgents]:
    """Serves scripted agents until the block ends."""
    agents = ScriptedAgents()
    application = web.Application(client_max_size=16 * 1024 * 1024)
    application.router.add_post("/{name}/v1/chat/completions", agents.answer)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    agents.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield agents
    finally:
        await runner.cleanup()
