"""Copies of routes in Redis, refilled from the registry.

A value is: one byte version, two bytes length of the stamp, the stamp, the route as JSON. The first three are its mark. A
value that cannot be read (another version's, or written by hand) is as good as none; it is its own mark, as a whole.
"""

import json
from dataclasses import asdict

from pydantic import TypeAdapter, ValidationError

from twofold_chassis.redis import RedisLink, Reply, Script, losable
from twofold_router import keys
from twofold_router.routes import AgentKey, AgentSettings, Route, Seen, Target

_VERSION = 2
_HEAD_BYTES = 3
_SILENT = object()
# url, published, settings, read_at, gone, targets
_CONTENT = TypeAdapter(tuple[str, bool, AgentSettings, float, bool, tuple[Target, ...]])
_PUT_ROUTE = Script.load("twofold_router.lua", "put_route")


class RedisRoutes:
    """Routes in Redis. When it does not answer within its budget there is no copy, and none is put."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def get(self, agent: AgentKey) -> Seen:
        """What is there now."""
        value: Reply = await losable(self._link.call("GET", _key(agent)), otherwise=_SILENT)
        if value is _SILENT:
            return Seen(answered=False)
        return _seen(value) if value else Seen()

    async def put(self, agent: AgentKey, route: Route, *, instead_of: bytes, ttl_s: float) -> bool:
        """Puts the route, unless something else than what `instead_of` marks is there by now; True if it was put."""
        ttl_ms = max(1, int(ttl_s * 1000))
        arguments = (instead_of, encode(route), ttl_ms)
        return bool(await losable(self._link.run(_PUT_ROUTE, [_key(agent)], arguments), otherwise=0))


def _key(agent: AgentKey) -> str:
    return keys.route(agent.workspace_id, agent.agent_id)


def _mark(stamp: bytes) -> bytes:
    return bytes([_VERSION]) + len(stamp).to_bytes(2, "big") + stamp


def encode(route: Route) -> bytes:
    """The value of a route."""
    targets = [asdict(target) for target in route.targets]
    content = [route.url, route.published, asdict(route.settings), route.read_at, route.gone, targets]
    return _mark(route.stamp) + json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def _seen(value: bytes) -> Seen:
    mark_bytes = _HEAD_BYTES + int.from_bytes(value[1:_HEAD_BYTES], "big")
    if value[0] != _VERSION:
        return Seen(mark=value)
    try:
        content = _CONTENT.validate_json(value[mark_bytes:], strict=True)
    except ValidationError:
        return Seen(mark=value)
    url, published, settings, read_at, gone, targets = content
    stamp = value[_HEAD_BYTES:mark_bytes]
    return Seen(Route(url, published, settings, stamp, read_at, gone, targets), value[:mark_bytes])
