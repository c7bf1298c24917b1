"""Revisions: where in the registry's history a change stands, and the tokens that callers carry of it.

The registry issues them; the router, which keeps copies of what the registry says, compares them.
"""

from typing import NamedTuple

from twofold_chassis import fields
from twofold_chassis.refusals import HistoryChanged, InvalidToken, Reason, Unavailable

_KIND = "revision"
_NUMBER_BYTES = 8
_RETRY_S = 0.1


class RevisionNotReached(Unavailable):
    """The asked revision lies ahead of what this server can read."""

    reason = Reason.REASON_REVISION_NOT_REACHED


class Revision(NamedTuple):
    """A place in the history `epoch`. Numbers of one epoch are gapless and in the order of the commits."""

    epoch: int
    number: int

    def token(self) -> bytes:
        """The opaque form that callers carry."""
        content = self.epoch.to_bytes(_NUMBER_BYTES, "big") + self.number.to_bytes(_NUMBER_BYTES, "big")
        return fields.seal(_KIND, content)

    def satisfies(self, least: "Revision | None") -> None:
        """Refuses unless what was read at this revision holds everything that `least` holds."""
        if least is None:
            return
        if least.epoch != self.epoch:
            raise HistoryChanged("the revision token is of another history of the registry; drop it and read again")
        if least.number > self.number:
            raise RevisionNotReached("this server has not yet seen the asked revision", retry_after_s=_RETRY_S)


def revision_of(token: bytes, field: str) -> Revision | None:
    """The revision in a token; None for an empty one."""
    if not token:
        return None
    content = fields.unseal(_KIND, token, field)
    if len(content) != 2 * _NUMBER_BYTES:
        raise InvalidToken(field, "is not a token of this service")
    return Revision(int.from_bytes(content[:_NUMBER_BYTES], "big"), int.from_bytes(content[_NUMBER_BYTES:], "big"))
