"""A way to one server that can be disturbed while it is used: what networks do, done on purpose and at once.

Between each worker and each store stands one of its own, so that one worker can be cut off while the others are not. What
a real network only delays is only delayed here: bytes that meet a black hole arrive when it ends, as TCP would send them
again, unless the connection is reset before. That is how a request is executed long after its caller has gone.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from enum import Enum

from twofold_cli.embedded.ports import LOOPBACK, free_port

_HELD_BYTES_MAX = 16 * 1024 * 1024
_CONNECT_S = 5.0
_PORT_ATTEMPTS = 5
# Long enough for a server to have done all that the swallowed answer was about.
_AFTER_SWALLOWED_S = 0.05
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Way(Enum):
    """A direction of a connection."""

    REQUESTS = "requests"
    ANSWERS = "answers"


class FaultProxy:
    """Listens on `port` and connects to the server that it leads to. All of it can be switched at any time."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._port: int | None = None
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._held: set[Way] = set()
        self._delay_s = 0.0
        self._to_swallow: bool | None = None

    @property
    def port(self) -> int:
        """Where it listens, the same for ever."""
        assert self._port is not None, "never started"
        return self._port

    async def start(self) -> None:
        """Listens."""
        for _ in range(_PORT_ATTEMPTS):
            self._port = free_port()
            with contextlib.suppress(OSError):
                return await self.accept()
        raise OSError("no free port to listen on")

    async def stop(self) -> None:
        """Gone, with all its connections."""
        await self.refuse()
        self.reset()

    # What can be done to it -----------------------------------------------------------------------------

    def delay(self, seconds: float) -> None:
        """Every byte takes so much longer, each way."""
        self._delay_s = seconds

    def hold(self, *ways: Way) -> None:
        """Nothing passes these ways until `heal`: both are a black hole, which accepts and says nothing."""
        self._held.update(ways or Way)

    def swallow(self, *, silent: bool = False) -> None:
        """The next answer is lost; then its connection is reset, or says nothing any more until `heal`."""
        self._to_swallow = silent

    def cut(self) -> None:
        """Every connection ends, in order."""
        for pair in tuple(self._pairs):
            pair.close()

    def reset(self) -> None:
        """Every connection ends with RST; what was held is lost."""
        for pair in tuple(self._pairs):
            pair.reset()

    async def refuse(self) -> None:
        """New connections are refused; those that are there stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def accept(self) -> None:
        """New connections are taken again."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _Pair(self).client, LOOPBACK, self._port)

    def lead_to(self, host: str, port: int) -> None:
        """From now on to another server, as an address that moves; connections to the old one are reset."""
        self._upstream = (host, port)
        self.reset()

    async def heal(self) -> None:
        """All is well again. What was held arrives now, late; a connection that has lost something is reset."""
        self._held.clear()
        self._delay_s, self._to_swallow = 0.0, None
        for pair in tuple(self._pairs):
            pair.heal()
        await self.accept()

    # What its connections ask ---------------------------------------------------------------------------

    def _holds(self, way: Way) -> bool:
        return way in self._held

    def _takes_swallow(self) -> bool | None:
        silent, self._to_swallow = self._to_swallow, None
        return silent

    async def _connect(self, pair: "_Pair") -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                await asyncio.get_running_loop().create_connection(lambda: pair.server, *self._upstream)
        except (OSError, TimeoutError):
            pair.reset()


class _Pair:
    """One connection: what a client opened, and what was opened to the server for it."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        proxy._pairs.add(self)
        self._lost_something = False
        self._silent = False
        self._requests, self._answers = _Lane(proxy, Way.REQUESTS), _Lane(proxy, Way.ANSWERS)
        self.client = _End(self, self._requests, self._answers)
        self.server = _End(self, self._answers, self._requests)
        self._connecting: asyncio.Task[None] | None = None
        self._reset_later: asyncio.TimerHandle | None = None

    def opened(self, end: "_End") -> None:
        if end is self.client and not self._proxy._holds(Way.REQUESTS):
            self._connect()

    def received(self, lane: "_Lane", data: bytes) -> None:
        if lane is self._answers:
            if self._silent:
                return
            if not self._lost_something and (silent := self._proxy._takes_swallow()) is not None:
                self._lost_something, self._silent = True, True
                if not silent:
                    self._reset_later = asyncio.get_running_loop().call_later(_AFTER_SWALLOWED_S, self.reset)
                return
        lane.put(data)

    def heal(self) -> None:
        if self._lost_something:
            self.reset()
            return
        self._connect()
        self._requests.flow()
        self._answers.flow()

    def close(self) -> None:
        for end in (self.client, self.server):
            if end.transport is not None:
                end.transport.close()
        self._forget()

    def reset(self) -> None:
        for end in (self.client, self.server):
            if end.transport is not None:
                _abort_with_reset(end.transport)
        self._forget()

    def _connect(self) -> None:
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._proxy._connect(self))

    def _forget(self) -> None:
        self._proxy._pairs.discard(self)
        if self._reset_later is not None:
            self._reset_later.cancel()
        if self._connecting is not None and self._connecting is not asyncio.current_task():
            self._connecting.cancel()


class _End(asyncio.Protocol):
    """One end of a pair: what it receives goes into its lane, and the other lane writes to it."""

    def __init__(self, pair: _Pair, outgoing: "_Lane", incoming: "_Lane") -> None:
        self.transport: asyncio.Transport | None = None
        self._pair = pair
        self._outgoing = outgoing
        self._incoming = incoming

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self._pair not in self._pair._proxy._pairs:  # it was given up while it was being made
            transport.abort()
            return
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._outgoing.source = self._incoming.target = transport
        self._pair.opened(self)
        self._incoming.flow()

    def data_received(self, data: bytes) -> None:
        self._pair.received(self._outgoing, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._outgoing.put(None)

    def pause_writing(self) -> None:
        self._incoming.stopped = True
        self._incoming.balance()

    def resume_writing(self) -> None:
        self._incoming.stopped = False
        self._incoming.balance()


class _Lane:
    """One direction of a pair: what came in and has not gone out yet. None is the end."""

    def __init__(self, proxy: FaultProxy, way: Way) -> None:
        self.source: asyncio.Transport | None = None
        self.target: asyncio.Transport | None = None
        self.stopped = False
        self._proxy = proxy
        self._way = way
        self._chunks: deque[tuple[float, bytes | None]] = deque()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, chunk: bytes | None) -> None:
        self._chunks.append((asyncio.get_running_loop().time() + self._proxy._delay_s, chunk))
        self._bytes += len(chunk or b"")
        self.flow()

    def flow(self) -> None:
        """Passes on what may pass now."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._chunks and self.target is not None and not self._proxy._holds(self._way):
            due, chunk = self._chunks[0]
            if due > loop.time():
                self._timer = loop.call_at(due, self.flow)
                break
            self._chunks.popleft()
            if chunk is None:
                self.target.close()
            elif not self.target.is_closing():
                self._bytes -= len(chunk)
                self.target.write(chunk)
        self.balance()

    def balance(self) -> None:
        """Reads no faster than can be written or kept."""
        if self.source is None or self.source.is_closing():
            return
        if self.stopped or self._bytes > _HELD_BYTES_MAX:
            self.source.pause_reading()
        else:
            self.source.resume_reading()


def _abort_with_reset(transport: asyncio.Transport) -> None:
    with contextlib.suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
