"""A headless browser, driven over the DevTools protocol: as much of it as tests of a page need.

https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.waiting import until

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root, and show it their own page only
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)


def found() -> str | None:
    """Where there is one."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page."""

    def __init__(self, browser: "_Devtools", session: str) -> None:
        self._browser = browser
        self._session = session

    async def open(self, url: str) -> None:
        """Goes there."""
        await self._browser.ask("Page.navigate", self._session, url=url)

    async def js(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        told = await self._evaluated(expression)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, expression: str) -> None:
        """Returns once the expression is true in the page."""

        async def is_so() -> bool:
            told = await self._evaluated(expression)  # it may fail while the page is not there yet
            return told["result"].get("value") is True

        await until(is_so, expression)

    async def _evaluated(self, expression: str) -> Any:
        return await self._browser.ask("Runtime.evaluate", self._session, expression=expression, returnByValue=True)

    async def picture(self, path: Path) -> None:
        """What it looks like, as PNG."""
        told = await self._browser.ask("Page.captureScreenshot", self._session, format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(told["data"]))


class _Devtools:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}

    async def ask(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        of_session = {"sessionId": session} if session else {}
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": parameters, **of_session}))
        async with asyncio.timeout(30):
            return await answer

    async def listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            answer = self._asked.pop(told.get("id"), None)
            if answer is None or answer.done():
                continue
            if "error" in told:
                answer.set_exception(RuntimeError(told["error"]["message"]))
            else:
                answer.set_result(told["result"])


@contextlib.asynccontextmanager
async def tab(program: str, folder: Path) -> AsyncIterator[Tab]:
    """A page of a browser of its own, which keeps what it has to in `folder`."""
    process = await asyncio.create_subprocess_exec(
        program,
        *_FLAGS,
        f"--user-data-dir={folder}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        told = folder / "DevToolsActivePort"

        async def listens() -> bool:
            return told.exists() and len(told.read_text().splitlines()) >= 2

        await until(listens)
        port, path = told.read_text().splitlines()[:2]
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
        ):
            browser = _Devtools(socket)
            listening = asyncio.create_task(browser.listen())
            try:
                target = await browser.ask("Target.createTarget", url="about:blank", newWindow=True, width=900, height=640)
                session = await browser.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
                yield Tab(browser, session["sessionId"])
            finally:
                listening.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
