"""What is done when: drawn from a seed, before anything runs, so that a seed replays the same faults at the same moments."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# calm: concurrency only. link: what loses nothing. crash: workers are killed as well. loss: Redis loses data. both: both.
KINDS = ("calm", "link", "crash", "loss", "both")

LINKS = (
    "postgres delay",
    "postgres hole",
    "postgres requests held",
    "postgres answers held",
    "postgres swallow",
    "postgres swallow, silent",
    "postgres cut",
    "postgres reset",
    "postgres refuse",
    "redis delay",
    "redis hole",
    "redis requests held",
    "redis answers held",
    "redis swallow",
    "redis swallow, silent",
    "redis cut",
    "redis reset",
    "redis refuse",
)
PAUSES = ("worker stop",)
CRASHES = ("worker kill", "worker kill", "worker stop", "all workers kill")
SERVERS = (
    "postgres stop",
    "postgres immediate",
    "postgres kill",
    "postgres slow",
    "redis stop",
    "redis full",
    "redis restart",
    "window evict",
    "window evict",
    "window expire",
)
LOSSES = ("redis flush", "redis flush", "redis kill", "redis failover", "redis split")

# Faults on one track follow each other, faults of different tracks overlap: of links, of workers, of servers.
_TRACKS: Mapping[str, Sequence[tuple[Sequence[str], float]]] = {
    "calm": (),
    "link": ((LINKS, 0.5), (PAUSES, 3.0), (SERVERS, 0.6)),
    "crash": ((LINKS, 0.7), (CRASHES, 0.8), (SERVERS, 0.8)),
    "loss": ((LINKS, 0.8), (PAUSES, 4.0), (SERVERS + LOSSES + LOSSES, 0.4)),
    "both": ((LINKS, 1.2), (CRASHES, 1.0), (SERVERS + LOSSES + LOSSES, 0.5)),
}
_LASTS_S = (0.1, 1.3)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is done: when it begins, how long it lasts, to which worker, and a number of its own from 0 to 1."""

    at: float
    seconds: float
    name: str
    worker: int
    dose: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One schedule."""

    seed: int
    kind: str
    seconds: float
    tracks: Sequence[Sequence[Fault]]


def planned(seed: int, seconds: float, *, workers: int = 2, kind: str | None = None) -> Plan:
    """The schedule of a seed. Its kind is drawn from the seed too: five seeds in a row are of five kinds."""
    chosen = kind or KINDS[seed % len(KINDS)]
    chance = random.Random(f"chaos {seed}")
    tracks = [list(_track(chance, names, gap_s, seconds, workers)) for names, gap_s in _TRACKS[chosen]]
    return Plan(seed, chosen, seconds, tracks)


def directed(seed: int, seconds: float, tracks: Sequence[Sequence[str]], *, gap_s: float = 0.3, workers: int = 2) -> Plan:
    """A schedule of these faults only; those of one track come one after the other."""
    chance = random.Random(f"directed {seed}")
    kind = "both" if {name for names in tracks for name in names} & set(LOSSES) else "crash"
    return Plan(seed, kind, seconds, [list(_track(chance, names, gap_s, seconds, workers)) for names in tracks])


def _track(chance: random.Random, names: Sequence[str], gap_s: float, seconds: float, workers: int) -> Iterator[Fault]:
    at = chance.uniform(0, 2 * gap_s)
    while at < seconds:
        lasts = chance.uniform(*_LASTS_S)
        yield Fault(
            round(at, 3), round(lasts, 3), chance.choice(names), chance.randrange(workers), round(chance.random(), 3)
        )
        at += lasts + chance.uniform(0, 2 * gap_s)
