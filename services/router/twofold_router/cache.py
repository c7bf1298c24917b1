"""Copies in Redis of what the registry says, shared by all routers.

A value is the revision in 16 digits, so that a script can compare it, and the value as JSON behind it. The epoch stands in
the key: histories never meet. A value that cannot be read (another version's, or written by hand) is as good as none.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from twofold_chassis.redis import RedisLink, Reply, Script, losable
from twofold_router import keys
from twofold_router.copies import Told
from twofold_router.knowledge import Stamp
from twofold_router.permissions import PairKey, Permission
from twofold_router.routes import AgentKey, Route
from twofold_router.terms import Terms, TermsKey

_DIGITS = 16
_PUT = Script.load("twofold_router.lua", "put_copy")

Key = TypeVar("Key")
Value = TypeVar("Value")


class RedisCopies(Generic[Key, Value]):
    """Copies of one kind. When Redis does not answer within its budget there is none, and none is put."""

    def __init__(self, link: RedisLink, key: Callable[[int, Key], str], form: TypeAdapter[tuple[bool, Value]]) -> None:
        self._link = link
        self._key = key
        self._form = form

    async def get(self, epoch: int, key: Key) -> Told[Value] | None:
        value: Reply = await losable(self._link.call("GET", self._key(epoch, key)), otherwise=None)
        return _read(value, epoch, self._form) if value else None

    async def put(self, key: Key, told: Told[Value], ttl_s: float) -> None:
        revision = f"{told.stamp.revision:0{_DIGITS}}".encode()
        value = revision + self._form.dump_json((told.is_no, told.value))
        name = self._key(told.stamp.epoch, key)
        await losable(self._link.run(_PUT, [name], (revision, value, max(1, int(ttl_s * 1000)))), otherwise=None)


def redis_permissions(link: RedisLink) -> RedisCopies[PairKey, Permission]:
    """Copies of permissions."""
    return RedisCopies(link, lambda epoch, key: keys.permission(epoch, *key), TypeAdapter(tuple[bool, Permission]))


def redis_terms(link: RedisLink) -> RedisCopies[TermsKey, Terms | None]:
    """Copies of terms."""
    return RedisCopies(link, lambda epoch, key: keys.terms(epoch, *key), TypeAdapter(tuple[bool, Terms | None]))


def redis_routes(link: RedisLink) -> RedisCopies[AgentKey, Route | None]:
    """Copies of routes."""
    return RedisCopies(link, lambda epoch, key: keys.route(epoch, *key), TypeAdapter(tuple[bool, Route | None]))


def _read(value: Any, epoch: int, form: TypeAdapter[tuple[bool, Value]]) -> Told[Value] | None:
    revision = value[:_DIGITS]
    if len(revision) < _DIGITS or not revision.isdigit():
        return None
    try:
        is_no, told = form.validate_json(value[_DIGITS:])
    except ValidationError:
        return None
    return Told(told, Stamp(epoch, int(revision)), is_no)
