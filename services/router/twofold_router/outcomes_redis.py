"""What routers tell one another of targets that could not be dialled, in Redis: one small hash, lost without harm."""

import json
from collections.abc import Sequence
from typing import Any

from twofold_chassis.redis import RedisLink, Script, losable
from twofold_router import keys
from twofold_router.outcomes import TargetKey, Told

_SWAP = Script.load("twofold_router.lua", "swap_rests")
_RESTS_MAX = 1000
_KINDS = (str, str, int, str)


class RedisBoard:
    """The hash. When Redis does not answer within its budget, nobody is told and nothing is heard."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def swap(self, failing: Sequence[Told], reached: Sequence[TargetKey]) -> Sequence[Told] | None:
        new = failing[:_RESTS_MAX]
        arguments: list[str | int] = [_RESTS_MAX, len(new)]
        for told in new:
            arguments += [_field(told.key), max(1, int(told.rest_s * 1000)), told.failures]
        arguments += [_field(key) for key in reached]
        reply: Any = await losable(self._link.run(_SWAP, [keys.rests()], arguments), otherwise=None)
        if reply is None:
            return None
        found = (_read(*reply[at : at + 3]) for at in range(0, len(reply), 3))
        return [told for told in found if told is not None]


def _field(key: TargetKey) -> str:
    return json.dumps(key, separators=(",", ":"))


def _read(field: bytes, rest_ms: int, failures: int) -> Told | None:
    # What cannot be read, another version's or written by hand, is as good as nothing.
    try:
        parts = json.loads(field)
    except ValueError:
        return None
    if not isinstance(parts, list) or tuple(map(type, parts)) != _KINDS:
        return None
    return Told(TargetKey(*parts), rest_ms / 1000, failures)
