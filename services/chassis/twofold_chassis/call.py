"""What is known of the call that is being served: who calls, under which request id, until when.

It stands in a context variable that the server's interceptor sets, so that nouns and stores need no parameter for it
where they only pass it on.
"""

import contextvars
import time
from dataclasses import dataclass

ACTOR_KEY = "twofold-actor"
REQUEST_ID_KEY = "x-request-id"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls. `verified` is False while the name is only what the caller said of itself."""

    actor: str
    verified: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `deadline` is a reading of time.monotonic()."""

    identity: Identity
    request_id: str
    deadline: float

    def left_s(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - time.monotonic())


_NOBODY = Call(identity=Identity("system", verified=True), request_id="", deadline=float("inf"))
_current: contextvars.ContextVar[Call] = contextvars.ContextVar("twofold_call", default=_NOBODY)


def current() -> Call:
    """The call that is being served; outside of any, the system's own."""
    return _current.get()


def enter(call: Call) -> None:
    """Makes `call` the current one of this task and of those it starts."""
    _current.set(call)
