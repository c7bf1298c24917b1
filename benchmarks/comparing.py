"""What rows of the report are made from."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from google.protobuf.message import Message

from benchmarks import echo
from benchmarks.places import Place
from benchmarks.rows import Comparison, Figure, Server, Subject

MANY = 64
_ECHO_IS = "bare grpc.aio echo with the same sizes, same run"


@dataclass(frozen=True, slots=True)
class Operation:
    """A row to be: `prepare` makes the data and the servers that it needs, or measures a figure itself."""

    id: str
    prepare: Callable[[Place], Awaitable[Comparison | Figure]]


def is_chosen(id_: str, only: Sequence[str]) -> bool:
    """Whether a row is among those asked for: by its id, or by what the id begins with; all if nothing is asked for."""
    return not only or any(id_ == name or id_.startswith(f"{name}-") for name in only)


def subject(server: Server, method: str, requests: Sequence[Message]) -> Subject:
    """Calls of a method, the same in each round."""
    return Subject(server, method, always(requests))


def always(requests: Sequence[Message]) -> Callable[[int], Sequence[bytes]]:
    """The same bodies in each round."""
    bodies = [request.SerializeToString() for request in requests]
    return lambda _: bodies


async def against_echo(
    place: Place, id_: str, what: str, mine: Subject, answer_size: int, callers: int, goal: float | None, note: str = ""
) -> Comparison:
    """Against an echo with requests and answers of the same size. A lone caller sends one body only."""
    bodies = mine.bodies(0)[:callers]
    mine = replace(mine, bodies=lambda _: bodies)
    body = echo.request(len(bodies[0]), answer_size)
    base = Subject(await place.echo(), echo.METHOD, lambda _: [body] * len(bodies))
    told = f"{what}, alone" if callers == 1 else what
    return Comparison(id_, told, mine, base, _ECHO_IS, callers, goal, note)
