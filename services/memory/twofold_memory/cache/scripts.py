"""The Lua scripts of this room."""

import hashlib
from importlib import resources

from twofold_chassis.redis import Script

_LUA = "twofold_memory.cache.lua"


def script(name: str, *, behind: str | None = None) -> Script:
    """The script `name`, with the functions of another file in front of it: a script of Redis can call no other."""
    if behind is None:
        return Script.load(_LUA, name)
    source = "\n".join((resources.files(_LUA) / f"{part}.lua").read_text(encoding="utf-8") for part in (behind, name))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
