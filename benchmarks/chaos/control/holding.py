"""What pods believed of the sessions that they hold, and what routers said of them, and the judgement of it. Pure.

TWO: a pod served a session after another had been given it under a higher fence. FENCE: a fence did not rise. SNATCHED: a
pod was told that a session is another's, which it is not. CLOSED: a session was closed under a fence that another
holding had followed. GHOST: a session of a pod that was killed was listed, long after its lease. TABLE: when all was well
again, the table was not what the pods hold.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.chaos.control.history import Violation

# One second is promised; ten times as much decides.
_GHOST_S = 10.0
_DYING_S = 5.0


@dataclass(frozen=True, slots=True)
class Word:
    """One thing that a pod wrote down. `what`: opened, holds, tries, refused, lost; `sessions`: what it holds and serves."""

    pod: str
    what: str
    at: float
    session: str = ""
    fence: int = 0
    reason: str = ""
    sessions: tuple[tuple[str, int], ...] = ()
    life: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """The table, as a router told it: sessions with their fences."""

    sent: float
    sessions: tuple[tuple[str, int], ...]


@dataclass
class Holding:
    """Everything that one schedule saw. `kills` are pods and when, `closed` sessions, fences and when that was sent."""

    lease_s: float
    words: list[Word] = field(default_factory=list)
    listed: list[Listed] = field(default_factory=list)
    kills: list[tuple[str, float]] = field(default_factory=list)
    closed: list[tuple[str, int, float]] = field(default_factory=list)
    differs: str = ""

    def counts(self) -> Counter[str]:
        """What was seen, in numbers."""
        told = Counter(f"pods: {word.what}" for word in self.words if word.what != "holds")
        told["tables listed"], told["pods killed"] = len(self.listed), len(self.kills)
        return told


def judge_sessions(holding: Holding) -> Iterator[Violation]:
    """What is wrong with it."""
    opened: defaultdict[str, list[Word]] = defaultdict(list)
    tried: defaultdict[str, list[Word]] = defaultdict(list)
    about: defaultdict[str, list[Word]] = defaultdict(list)
    for word in sorted(holding.words, key=lambda word: word.at):
        about[word.session].append(word)
        if word.what == "opened":
            opened[word.session].append(word)
        elif word.what == "tries":
            tried[word.session].append(word)
    yield from _of_fences(opened, tried)
    for word in holding.words:
        if word.what == "holds":
            for session, fence in word.sessions:
                yield from _of_belief(word, session, fence, opened[session])
        elif word.what == "lost" and word.reason == "TAKEN_OVER":
            if _was_given(word, about[word.session]) or _was_dying(word, holding):
                continue
            detail = f"{word.pod} has lost {word.session} {word.fence} to nobody; {_story(holding, word.session)}"
            yield Violation("SNATCHED", -1, word.at, detail)
    for session, fence, sent in holding.closed:
        if any(other.fence > fence and other.at < sent for other in opened[session]):
            yield Violation("CLOSED", -1, sent, f"{session} under {fence}, long another's")
    yield from _of_ghosts(holding, opened)
    if holding.differs:
        yield Violation("TABLE", -1, 0.0, holding.differs)


def _was_dying(lost: Word, holding: Holding) -> bool:
    """Whether its pod was another soon after: then it may have been dead when it heard this."""
    words = [word for word in holding.words if word.pod == lost.pod and word.what == "holds"]
    before = {word.life for word in words if lost.at - holding.lease_s < word.at <= lost.at}
    after = {word.life for word in words if lost.at < word.at < lost.at + _DYING_S}
    return not after <= before


def _story(holding: Holding, session: str) -> str:
    """All that was written down of a session, for whoever looks for the reason."""
    return _told(sorted((word for word in holding.words if word.session == session), key=lambda word: word.at))


def _told(words: Sequence[Word]) -> str:
    return "; ".join(f"{word.at:.3f} {word.pod[:5]} {word.what} {word.fence} {word.reason}" for word in words)


def _was_given(lost: Word, words: Sequence[Word]) -> bool:
    """Whether another pod was given it under a higher fence, or may have been without hearing of it."""
    for tried in words:
        if tried.what == "tries" and tried.pod != lost.pod and tried.at < lost.at:
            mine = (word for word in words if word.pod == tried.pod and word.at >= tried.at)
            outcome = next((word for word in mine if word.what in ("opened", "refused")), None)
            if outcome is None or (outcome.what == "opened" and outcome.fence > lost.fence):
                return True
    return False


def _of_fences(opened: dict[str, list[Word]], tried: dict[str, list[Word]]) -> Iterator[Violation]:
    for session, words in opened.items():
        for word in words:
            asked = max((other.at for other in tried[session] if other.pod == word.pod and other.at <= word.at), default=0.0)
            # Of its own it may hear the same fence again: nobody had heard that it was given up.
            before = [other.fence + (other.pod != word.pod) for other in words if other.at < asked]
            if before and max(before) > word.fence:
                yield Violation("FENCE", -1, word.at, f"{session} is held under {word.fence}; {_told(words)}")


def _of_belief(word: Word, session: str, fence: int, opened: Sequence[Word]) -> Iterator[Violation]:
    for other in opened:
        if other.fence > fence and other.pod != word.pod and other.at < word.at:
            detail = f"{word.pod} serves {session} {fence}, {word.at - other.at:.3f} s after {other.pod} has {other.fence}"
            yield Violation("TWO", -1, word.at, detail)


def _of_ghosts(holding: Holding, opened: dict[str, list[Word]]) -> Iterator[Violation]:
    holders = {(session, word.fence): word for session, words in opened.items() for word in words}
    for listed in holding.listed:
        for key in listed.sessions:
            holder = holders.get(key)
            if holder is None:
                continue
            for pod, at in holding.kills:
                late_s = listed.sent - at - holding.lease_s - _GHOST_S
                if pod == holder.pod and holder.at < at and late_s > 0:
                    yield Violation("GHOST", -1, listed.sent, f"{key} of {pod}, killed {listed.sent - at:.1f} s before")
