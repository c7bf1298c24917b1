"""How ids become parts of Redis keys: readable at redis-cli, safe in a hash tag, and never two ids to one part."""

import hashlib
import re
from urllib.parse import quote

_ENCODED_BYTES_MAX = 120
_PREFIX_BYTES = 56
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,120}").fullmatch


def part(identifier: str) -> str:
    """The id with all bytes outside [A-Za-z0-9._-] percent-encoded; long ones as a prefix and a hash.

    '/', ':', '{' and '}' cannot appear, so parts can be joined with them without two pairs of ids ever meeting. A
    hashed part holds '~', which no other part does.
    """
    if _PLAIN(identifier):
        return identifier
    encoded = quote(identifier, safe="").replace("~", "%7E")
    if len(encoded) <= _ENCODED_BYTES_MAX:
        return encoded
    return f"{encoded[:_PREFIX_BYTES]}~{hashlib.sha256(identifier.encode()).hexdigest()[:48]}"
