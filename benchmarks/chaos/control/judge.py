"""The judgement: what callers were told, held against all that was true. Pure.

STALE: an answer was true at no moment from a lease and 50 ms before its call was sent until it came (and, if its caller may
rely on it, from a lease and 50 ms before it came). UNWAITED: it was true before, but a change that waits for all routers
had returned when its call was sent. TOKEN: it was true before the revision that its caller had named. WRONG: a code that
the contract does not name, or UNAVAILABLE without a time to ask again. KNOWS: it was told although for longer than a lease
the registry, or Postgres, could not be heard. HISTORY: a token was called one of another history, but there was none. LOST:
a change was acknowledged, and is not in the history. STUCK: a router did not come back.

A commit lies between the time that the database wrote down under the lock of its history and the first acknowledgement of it
or of any later one; commits are in the order of their revisions. So each state is known to have been true, at most and at
least, from when to when, and an answer is accused only if no moment fits.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.chaos.control.history import (
    FOREVER,
    Answer,
    Away,
    Era,
    History,
    Pair,
    Route,
    State,
    Token,
    Told,
    Verdict,
    Violation,
)

MARGIN_S = 0.05
_NEVER = float("-inf")
# Of these it says that it could not tell: no statement about the registry.
_SAYS_NOTHING = (Told.UNAVAILABLE, Told.OVERLOADED, Told.NOTHING)


@dataclass
class Judgement:
    """Violations, and what was counted on the way."""

    violations: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def kinds(self) -> Counter[str]:
        """Violations by kind."""
        return Counter(violation.kind for violation in self.violations)


class _Moment(NamedTuple):
    """A revision in its place: its commit lies from `earliest` to `latest`."""

    era: int
    revision: int
    earliest: float
    latest: float


class _Stretch(NamedTuple):
    """A state of a pair, from one place in the history up to, not including, another."""

    state: State
    first: int
    end: int


def judge(history: History, lease_s: float) -> Judgement:
    """What is wrong with a history; no violations if all is well."""
    return _Judge(history, lease_s).judged()


class _Judge:
    def __init__(self, history: History, lease_s: float) -> None:
        self._history = history
        self._lease_s = lease_s
        self._judgement = Judgement()
        self._moments = _moments(history)
        self._places = {(moment.era, moment.revision): place for place, moment in enumerate(self._moments)}
        self._stretches = _stretches(history.eras)
        # Those that waited, by when they had returned: the newest place that all routers had to know by then.
        self._waited = sorted(
            (write.came, place)
            for write in history.writes
            if write.waited and (place := self._place(write.token)) is not None
        )
        for index in range(1, len(self._waited)):
            came, place = self._waited[index]
            self._waited[index] = (came, max(place, self._waited[index - 1][1]))
        self._aways = {router: [away for away in history.aways if away.router == router] for router in _routers(history)}

    def judged(self) -> Judgement:
        judgement = self._judgement
        judgement.violations += [Violation("STUCK", -1, self._history.calm, detail) for detail in self._history.stuck]
        for write in self._history.writes:
            if self._place(write.token) is None:
                judgement.violations.append(Violation("LOST", -1, write.came, f"nobody knows of {write}"))
        for answer in self._history.answers:
            judgement.counts[answer.told.value] += 1
            judgement.counts["answers while nothing could be heard"] += self._away(answer) is not None
            judgement.violations += self._of(answer)
        return judgement

    def _of(self, answer: Answer) -> Iterator[Violation]:
        if answer.told is Told.WRONG:
            yield _bad("WRONG", answer, answer.detail)
        elif answer.told is Told.HISTORY:
            if not self._may_be_of_the_past(answer):
                yield _bad("HISTORY", answer, "its token is of the one history that there was")
        elif answer.told not in _SAYS_NOTHING:
            if away := self._away(answer):
                yield _bad("KNOWS", answer, f"nothing could be heard since {answer.sent - away.since:.3f} s before")
            yield from self._of_truth(answer)

    def _may_be_of_the_past(self, answer: Answer) -> bool:
        return answer.token is not None and any(since <= answer.came for since, _ in self._history.restarts)

    def _away(self, answer: Answer) -> Away | None:
        for away in self._aways[answer.router]:
            if away.since + self._lease_s + MARGIN_S < answer.sent and answer.came < away.until:
                return away
        return None

    def _of_truth(self, answer: Answer) -> Iterator[Violation]:
        since = answer.came if answer.relied else answer.sent
        since -= self._lease_s + MARGIN_S
        waited, token = self._known_to_all(answer.sent), self._token_place(answer)
        if self._is_true(answer, since, max(waited, token)):
            return
        if not self._is_true(answer, since, 0):
            yield _bad("STALE", answer, self._believed(answer, since))
        elif not self._is_true(answer, since, waited):
            yield _bad("UNWAITED", answer, f"all routers had to know of {self._moments[waited]}")
        else:
            yield _bad("TOKEN", answer, f"its token was of {self._moments[token]}")

    def _is_true(self, answer: Answer, since: float, least: int) -> bool:
        """Whether it was, at any moment from `since` until it came, not before this place in the history.

        The permission and the route are each of a moment of their own.
        """
        states = [stretch.state for stretch in self._possible(answer.pair, since, answer.came, least)]
        verdicts = {verdict for state in states for verdict in self._verdicts(state, answer, since)}
        return answer.told in _told_by(verdicts, {state.route for state in states}, answer)

    def _possible(self, pair: Pair, since: float, until: float, least: int) -> Iterator[_Stretch]:
        for stretch in self._stretches[pair]:
            ends = self._moments[stretch.end].latest if stretch.end < len(self._moments) else FOREVER
            if stretch.end > least and self._moments[stretch.first].earliest <= until and ends >= since:
                yield stretch

    def _verdicts(self, state: State, answer: Answer, since: float) -> Iterator[Verdict]:
        """What the permission says of itself by then: a grant ends by the database's clock, and up to a lease early."""
        if state.verdict is not Verdict.GRANT:
            yield state.verdict
            return
        begins = answer.came if answer.relied else since
        if begins < state.ends + MARGIN_S:
            yield Verdict.GRANT
        if answer.came > state.ends - self._lease_s - MARGIN_S:
            yield Verdict.DENIED

    def _known_to_all(self, at: float) -> int:
        """The newest place of a change that waited for all routers and had returned by then."""
        index = bisect_left(self._waited, (at, 0))
        return self._waited[index - 1][1] if index else 0

    def _token_place(self, answer: Answer) -> int:
        if answer.token is None:
            return 0
        return self._place(answer.token) or 0

    def _place(self, token: Token) -> int | None:
        for era, found in enumerate(self._history.eras):
            if token.epoch <= found.epoch_max:
                return self._places.get((era, token.revision))
        return None

    def _believed(self, answer: Answer, since: float) -> str:
        told = [
            f"{stretch.state} from {self._moments[stretch.first].earliest - answer.sent:+.3f}"
            for stretch in self._possible(answer.pair, since, answer.came, 0)
        ]
        return f"true since {since - answer.sent:+.3f} s of its sending were: {'; '.join(told)}"


def _told_by(verdicts: set[Verdict], routes: set[Route | None], answer: Answer) -> set[Told]:
    """What may be said if the permission is one of these, and the route one of those."""
    permits = verdicts & {Verdict.GRANT, Verdict.ROLE}
    told = {Told.DENIED} if Verdict.DENIED in verdicts else set()
    if answer.only_permission:
        return told | ({Told.ALLOWED} if permits else set()) | ({Told.DENIED} if verdicts - permits else set())
    if Verdict.AGENT_UNKNOWN in verdicts:
        told.add(Told.UNKNOWN)
    if Verdict.AGENT_GONE in verdicts:
        told.add(Told.GONE)
    for route in routes if permits else ():
        if route is None:
            told |= {Told.UNKNOWN} if Verdict.ROLE in permits else set()
            told |= {Told.DENIED} if Verdict.GRANT in permits else set()
        elif route.gone:
            told.add(Told.GONE)
        elif not route.published:
            told.add(Told.UNPUBLISHED)
        elif not answer.url or route.url == answer.url:
            told.add(Told.ALLOWED)
    return told


def _moments(history: History) -> Sequence[_Moment]:
    """All revisions in their order, with the bounds of their commits."""
    acked: list[dict[int, float]] = [{} for _ in history.eras]
    for write in history.writes:
        known = acked[next(index for index, found in enumerate(history.eras) if write.token.epoch <= found.epoch_max)]
        known[write.token.revision] = min(write.came, known.get(write.token.revision, FOREVER))
    moments: list[_Moment] = []
    for index, era in enumerate(history.eras):
        latest, bounds = era.read, []
        for change in reversed(era.changes):
            latest = min(latest, acked[index].get(change.revision, FOREVER))
            bounds.append(latest)
        moments.append(_Moment(index, era.revision, era.since, era.begun))
        earliest = era.since
        for change, latest in zip(era.changes, reversed(bounds), strict=True):
            earliest = max(earliest, change.earliest)
            moments.append(_Moment(index, change.revision, earliest, latest))
    return moments


def _stretches(eras: Sequence[Era]) -> dict[Pair, Sequence[_Stretch]]:
    begins: dict[Pair, list[tuple[int, State]]] = {}
    place = 0
    for era in eras:
        for pair, state in era.states.items():
            begins.setdefault(pair, []).append((place, state))
        for number, change in enumerate(era.changes, start=place + 1):
            for pair, state in change.states.items():
                begins[pair].append((number, state))
        place += 1 + len(era.changes)
    return {
        pair: [
            _Stretch(state, first, after[0])
            for (first, state), after in zip(starts, [*starts[1:], (place, None)], strict=True)
        ]
        for pair, starts in begins.items()
    }


def _routers(history: History) -> set[int]:
    return {answer.router for answer in history.answers} | {away.router for away in history.aways}


def _bad(kind: str, answer: Answer, detail: str) -> Violation:
    told = f"{answer.pair.user} and {answer.pair.agent}: {answer.told.value}"
    what = "Check" if answer.only_permission else "Resolve"
    took = f"after {answer.came - answer.sent:.3f} s, from {answer.source or 'nobody'}"
    return Violation(kind, answer.router, answer.sent, f"{what} {told} {answer.url} {took}: {detail}")
