"""A small deterministic agent for demonstrations and tests: a real HTTP process that visibly uses its context.

python -m twofold_cli.demo_agent --port 0     # prints one line with its URL when it listens, serves until SIGTERM or SIGINT

It speaks the OpenAI-compatible chat completions protocol, streamed word by word or in one piece. It remembers nothing by
itself: what it knows of a user is what its request says, in the system message's blocks "Previous conversation:" and
"User preferences:", or in earlier messages.
"""

import argparse
import asyncio
import contextlib
import json
import re
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

_REQUEST_BYTES_MAX = 16 * 1024 * 1024
_SHUTDOWN_S = 1.0
_CONVERSATION, _PREFERENCES = "Previous conversation:", "User preferences:"

_TELLS_NAME = re.compile(r"\bmy name is ([^\W\d_][\w'-]*)", re.IGNORECASE)
_ASKS_NAME = re.compile(r"\b(what is|what's) my name\b", re.IGNORECASE)
_ASKS_PREFERENCE = re.compile(r"\bwhich (\w+) should I use\b", re.IGNORECASE)
_ASKS_FIRST = re.compile(r"\bwhat did I say first\b", re.IGNORECASE)
_FAULT = re.compile(r"fault: (hang|http (\d{3})|bad json|cut)$").match
_ESCAPED = re.compile(r"\\([\\nr])")


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a request says of what was before: (role, text) of earlier messages, and the user's preferences."""

    earlier: tuple[tuple[str, str], ...]
    preferences: dict[str, str]

    def said_by_user(self) -> list[str]:
        """What the user said, oldest first."""
        return [text for role, text in self.earlier if role == "user"]


def knowledge(messages: Sequence[dict[str, Any]]) -> Knowledge:
    """What all messages but the last one say."""
    system = "\n\n".join(_text(message) for message in messages[:-1] if message.get("role") == "system")
    told = [(str(message.get("role")), _text(message)) for message in messages[:-1] if message.get("role") != "system"]
    return Knowledge(tuple(_pairs(system, _CONVERSATION) + told), dict(_pairs(system, _PREFERENCES)))


def answer(messages: Sequence[dict[str, Any]]) -> str:
    """What the agent says to the last message."""
    said, known = _text(messages[-1]), knowledge(messages)
    if told := _TELLS_NAME.search(said):
        return f"Nice to meet you, {told[1]}."
    if _ASKS_NAME.search(said):
        names = [told[1] for line in known.said_by_user() if (told := _TELLS_NAME.search(line))]
        return f"Your name is {names[-1]}." if names else "You have not told me your name yet."
    if asked := _ASKS_PREFERENCE.search(said):
        preferred = known.preferences.get(f"preferred_{asked[1].lower()}")
        return f"You prefer {preferred}." if preferred else f"You have not told me which {asked[1].lower()} you prefer."
    if _ASKS_FIRST.search(said):
        lines = known.said_by_user()
        return f'You said first: "{lines[0]}"' if lines else "You have not said anything before."
    count = len(known.earlier)
    return f'You said: "{said}" I see {count} earlier message{"" if count == 1 else "s"}.'


def _pairs(system: str, heading: str) -> list[tuple[str, str]]:
    """The lines "name: text" of a block, from its heading to the next blank line."""
    _, found, block = f"\n{system}".rpartition(f"\n{heading}\n")
    lines = block.partition("\n\n")[0].split("\n") if found else []
    return [(name, _unescaped(text)) for name, colon, text in (line.partition(": ") for line in lines) if colon]


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: {"n": "\n", "r": "\r"}.get(match[1], match[1]), text)


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""


class DemoAgent:
    """The agent as an HTTP application. Faults are only shown if they are allowed."""

    def __init__(self, *, delay_s: float = 0.0, allow_faults: bool = False) -> None:
        self._delay_s = delay_s
        self._allow_faults = allow_faults
        self.requests = 0
        self._hung_up = 0

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=_REQUEST_BYTES_MAX)
        application.router.add_get("/health", self._health)
        application.router.add_post("/v1/chat/completions", self._complete)
        return application

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "requests": self.requests, "hung_up": self._hung_up})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        try:
            return await self._answered(request)
        except (asyncio.CancelledError, ConnectionResetError):
            self._hung_up += 1  # by the caller
            raise

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        if body is None:
            return _error(400, "the body is not a chat completion request")
        messages = body["messages"]
        fault = _FAULT(_text(messages[-1])) if self._allow_faults else None
        if fault and fault[1] == "hang":
            await asyncio.Event().wait()
        if fault and fault[2]:
            return _error(int(fault[2]), "as you wished")
        text = answer(messages)
        usage = _usage(messages, text)
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            return web.json_response(_completion("chat.completion", body, message=message, finish="stop") | {"usage": usage})
        wants_usage = (body.get("stream_options") or {}).get("include_usage")
        return await self._stream(request, body, text, usage if wants_usage else None, fault[1] if fault else "")

    async def _stream(
        self, request: web.Request, body: dict[str, Any], text: str, usage: dict[str, int] | None, fault: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
        await response.prepare(request)
        kind = "chat.completion.chunk"
        await response.write(_event(_completion(kind, body, delta={"role": "assistant", "content": ""})))
        for number, word in enumerate(re.findall(r"\s*\S+\s*$|\s*\S+", text)):
            if fault and number == 2:
                return await _broken(request, response, fault)
            await asyncio.sleep(self._delay_s)
            await response.write(_event(_completion(kind, body, delta={"content": word})))
        await response.write(_event(_completion(kind, body, delta={}, finish="stop")))
        if usage is not None:
            await response.write(_event(_completion(kind, body) | {"usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


async def _body(request: web.Request) -> dict[str, Any] | None:
    try:
        body = await request.json()
    except ValueError:
        return None
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return None
    return dict(body)


async def _broken(request: web.Request, response: web.StreamResponse, fault: str) -> web.StreamResponse:
    if fault == "bad json":
        await response.write(b"data: {this is no JSON\n\n")
        await response.write_eof()
    elif request.transport is not None:
        request.transport.abort()
    return response


def _completion(
    kind: str,
    body: dict[str, Any],
    *,
    message: dict[str, str] | None = None,
    delta: dict[str, str] | None = None,
    finish: str | None = None,
) -> dict[str, Any]:
    said = {"message": message} if message is not None else {"delta": delta}
    choices = [] if message is None and delta is None else [{"index": 0, **said, "finish_reason": finish}]
    return {"id": "chatcmpl-demo", "object": kind, "created": 0, "model": body.get("model", "demo"), "choices": choices}


def _usage(messages: Sequence[dict[str, Any]], text: str) -> dict[str, int]:
    read = sum(len(_text(message).split()) for message in messages)
    written = len(text.split())
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


@contextlib.asynccontextmanager
async def serving(agent: DemoAgent, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serves the agent until the block ends; gives its URL."""
    runner = web.AppRunner(agent.application(), access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    agent = DemoAgent(delay_s=options.delay_ms / 1000, allow_faults=options.allow_faults)
    async with serving(agent, host=options.host, port=options.port) as url:
        print(url, flush=True)
        await stop.wait()


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="pause before each word")
    parser.add_argument(
        "--allow-faults",
        action="store_true",
        help='messages "fault: hang", "fault: http 500", "fault: bad json" and "fault: cut" make it fail so',
    )
    try:
        asyncio.run(_serve(parser.parse_args()))
    except OSError as error:
        raise SystemExit(f"cannot listen: {error.strerror}") from None


if __name__ == "__main__":
    main()
