"""What is done when, to registries, routers and the stores between them: drawn from a seed, before anything runs."""

import random
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.chaos.schedules import Fault, Plan

# calm: concurrency only. redis: Redis alone. link: the network. crash: processes too. past: Postgres is put back as well.
KINDS = ("past", "redis", "link", "crash", "calm")

_WAYS = ("hole", "requests held", "answers held", "slow", "cut", "refuse")
REDIS = tuple(f"redis {way}" for way in (*_WAYS, "hole", "slow"))
STREAMS = tuple(f"stream {way}" for way in (*_WAYS, "fading"))
DATABASES = tuple(f"database {way}" for way in _WAYS)
LOSSES = ("redis kill", "redis stop", "redis flush", "redis copy", "redis old", "redis old")
ROUTERS = ("router stop", "router stop", "router kill", "router restart")
REGISTRIES = ("registry stop", "registry kill", "registry restart", "all registries stop", "all registries kill")
POSTGRES = ("postgres stop", "postgres kill", "postgres immediate", "postgres compact")
PASTS = ("postgres copy", "postgres restore", "postgres restore")

PODS = ("pod kill", "pod stop", "pod stop")

# Faults on one track follow each other, faults of different tracks overlap.
_TRACKS: Mapping[str, Sequence[tuple[Sequence[str], float]]] = {
    "calm": (),
    "redis": ((REDIS, 0.5), (LOSSES, 0.5), (PODS, 1.0)),
    "link": ((REDIS + STREAMS, 0.4), (STREAMS + DATABASES, 0.4), (("router stop",), 2.0), (PODS, 1.5)),
    "crash": ((REDIS + STREAMS + DATABASES, 0.8), (ROUTERS, 1.0), (REGISTRIES, 1.5), (LOSSES + POSTGRES, 1.0), (PODS, 1.0)),
    "past": ((REDIS + STREAMS + DATABASES, 1.0), (ROUTERS, 1.5), (PASTS + POSTGRES + LOSSES, 0.8), (PODS, 1.5)),
}
# Most are short; of the others each lasts long enough that nobody's lease outlives it.
_SHORT_S = (0.1, 1.3)
_LONG_LEASES = (1.0, 1.6)
_LONG_SHARE = 0.35
_TARGETS = 6


def planned(seed: int, seconds: float, lease_s: float, *, kind: str | None = None) -> Plan:
    """The schedule of a seed. Its kind is drawn from the seed too: five seeds in a row are of five kinds."""
    chosen = kind or KINDS[seed % len(KINDS)]
    chance = random.Random(f"control {seed}")
    return Plan(seed, chosen, seconds, [list(_track(chance, *track, seconds, lease_s)) for track in _TRACKS[chosen]])


def directed(seed: int, seconds: float, lease_s: float, tracks: Sequence[Sequence[str]], *, gap_s: float = 0.3) -> Plan:
    """A schedule of these faults only; those of one track come one after the other."""
    chance = random.Random(f"control, directed {seed}")
    return Plan(seed, "directed", seconds, [list(_track(chance, names, gap_s, seconds, lease_s)) for names in tracks])


def _track(chance: random.Random, names: Sequence[str], gap_s: float, seconds: float, lease_s: float) -> Iterator[Fault]:
    at = chance.uniform(0, 2 * gap_s)
    while at < seconds:
        lasts = chance.uniform(*_SHORT_S)
        if chance.random() < _LONG_SHARE:
            lasts = lease_s * chance.uniform(*_LONG_LEASES)
        name, target, dose = chance.choice(names), chance.randrange(_TARGETS), chance.random()
        yield Fault(round(at, 3), round(lasts, 3), name, target, round(dose, 3))
        at += lasts + chance.uniform(0, 2 * gap_s)
