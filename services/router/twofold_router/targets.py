"""Targets: which of an agent's takes a user's message now, out of what the registry says and what was heard of them."""

from collections.abc import Callable
from typing import NamedTuple

from twofold_chassis.refusals import FailedPrecondition, Reason, Unavailable
from twofold_chassis.urls import Home, UrlPolicy
from twofold_router.outcomes import Heard, Outcome, Outcomes, TargetKey
from twofold_router.routes import AgentKey, Observation, Route, Target, TargetState, preferred

# For how long it counts that somebody saw a target fail: who saw it may never look there again.
_FAILING_S = 60.0
_DRAINED_S = 1.0
_STARTING = (TargetState.COLD, TargetState.STARTING)
_URLS_MAX = 10_000


class AgentNotReady(Unavailable):
    """All targets of the agent drain, or were not reached a moment ago."""

    reason = Reason.REASON_AGENT_NOT_READY


class UrlForbidden(FailedPrecondition):
    """The target's URL leads where no agent of the workspace may live."""

    reason = Reason.REASON_URL_FORBIDDEN


class Choice(NamedTuple):
    """Where a message goes. `cold_start_s`: how long its first answer may take, if it must be started first."""

    target: Target
    state: TargetState
    cold_start_s: float | None


class _Sole(NamedTuple):
    """What is chosen for everybody while nothing speaks against it: most agents have one target."""

    route: Route
    home: Home | None
    choice: Choice


class View(NamedTuple):
    """What is known of a target. `takes`: whether a message may go there; `why` says it in words."""

    target: Target
    state: TargetState
    takes: bool
    why: str
    heard: Heard | None
    problem: str | None


class Targets:
    """Chooses. `database_s` is what the database's clock says at most at a moment of the machine's."""

    def __init__(self, outcomes: Outcomes, policy: UrlPolicy, *, database_s: Callable[[float], float]) -> None:
        self._outcomes = outcomes
        self._database_s = database_s
        self._policy = policy
        self._judged: dict[str, tuple[Home | None, str | None]] = {}
        self._sole: dict[AgentKey, _Sole] = {}

    def choose(
        self, agent: AgentKey, route: Route, user_id: str, home: Home | None, now: float, *, peek: bool = False
    ) -> Choice:
        """The target that takes this user's message now. `home` is the workspace's; None if it is not known.

        Who only peeks sends none. Refuses with AgentNotReady, UrlForbidden.
        """
        fails = self._outcomes.fails(*agent)
        if not fails:
            sole = self._sole.get(agent)
            if sole is not None and sole.route is route and (sole.home is home or sole.home == home):
                return sole.choice
        wanted = preferred(route.takers(), agent, user_id)
        if not fails and all(target.seen is None for target in wanted):
            self._require_allowed(agent, wanted[0], home)
            choice = Choice(wanted[0], TargetState.READY, None)
            if len(wanted) == 1:
                self._keep_sole(agent, _Sole(route, home, choice))
            return choice
        states = [self._state(_key(agent, route, target), target, now) for target in wanted]
        # Somebody else's word that a target fails is worth less than another target, and more than nothing.
        for is_last_resort in (False, True):
            for target, (state, is_own) in zip(wanted, states, strict=True):
                if state is TargetState.DRAINING or (state is TargetState.FAILING and not is_own) != is_last_resort:
                    continue
                key = _key(agent, route, target)
                if self._outcomes.admits(key, now, peek=True):
                    self._require_allowed(agent, target, home)
                    self._outcomes.admits(key, now, peek=peek)
                    return Choice(target, state, self._cold_start_s(key, route) if state in _STARTING else None)
        raise self._not_ready(agent, route, wanted, [state for state, _ in states], now)

    def hear(self, key: TargetKey, outcome: Outcome, latency_s: float, route: Route | None, now: float) -> None:
        """Takes in what became of a message; `route` is the agent's, as far as it is known here."""
        target = None if route is None else _found(route, key)
        if outcome is Outcome.FIRST_BYTE and target is not None and self._state(key, target, now)[0] in _STARTING:
            self._outcomes.started(key, latency_s)
        self._outcomes.hear(key, outcome, now)

    def views(self, agent: AgentKey, route: Route, user_id: str, home: Home | None, now: float) -> list[View]:
        """What is known of each target, in the order in which this user's messages would go to them."""
        takers = preferred(route.takers(), agent, user_id)
        others = [target for target in route.targets if target.weight <= 0]
        return [self._view(agent, route, target, home, now) for target in (*takers, *others)]

    def news_of(self, key: TargetKey, route: Route, now: float) -> Observation | None:
        """What the registry should know of a target and does not know yet."""
        target = _found(route, key)
        if target is None:
            return None
        state, is_own = self._state(key, target, now)
        known = TargetState.READY if target.seen is None else target.seen.state
        if not is_own or state is known:
            return None
        heard = self._outcomes.find(key)
        if state is TargetState.FAILING:
            message = f"could not be dialled (failures in a row: {heard.failures})" if heard else ""
        else:
            message = "" if heard is None or heard.cold_start_s is None else f"started within {heard.cold_start_s:.1f} s"
        return Observation(state, self._database_s(now), message)

    def _state(self, key: TargetKey, target: Target, now: float) -> tuple[TargetState, bool]:
        """The state of a target, and whether that is this router's own finding."""
        heard, seen = self._outcomes.find(key), target.seen
        state = TargetState.READY if seen is None else seen.state
        if seen is None or state is TargetState.READY:
            return (
                (TargetState.FAILING, True)
                if heard is not None and heard.failures
                else (TargetState.READY, heard is not None)
            )
        if state is TargetState.DRAINING:  # who drains can be reached
            return state, False
        # What stands before a target may take calls while it starts: only an answer says that it has.
        since = None if heard is None or heard.failures else heard.answered_at if state in _STARTING else heard.reached_at
        if since is not None and self._database_s(since) > seen.seen_s:
            return TargetState.READY, True
        if state is TargetState.FAILING:
            if heard is not None and heard.failures:
                return state, True
            if self._database_s(now) - seen.seen_s >= _FAILING_S:
                return TargetState.READY, False
        return state, False

    def _problem(self, url: str, home: Home | None) -> str | None:
        """Why the URL may not be used; judged once for the same URL and home, which come message after message."""
        judged = self._judged.get(url)
        if judged is not None and judged[0] == home:
            return judged[1]
        if len(self._judged) >= _URLS_MAX:
            self._judged.clear()
        problem = self._policy.problem(url, home)
        self._judged[url] = (home, problem)
        return problem

    def _keep_sole(self, agent: AgentKey, sole: _Sole) -> None:
        if len(self._sole) >= _URLS_MAX:
            self._sole.clear()
        self._sole[agent] = sole

    def _cold_start_s(self, key: TargetKey, route: Route) -> float:
        heard = self._outcomes.find(key)
        if heard is not None and heard.cold_start_s is not None:
            return heard.cold_start_s
        return route.settings.limits.first_token_s

    def _require_allowed(self, agent: AgentKey, target: Target, home: Home | None) -> None:
        problem = self._problem(target.url, home)
        if problem is not None:
            raise UrlForbidden(
                f"the URL of agent {agent.agent_id!r} is not allowed: {problem}",
                agent_id=agent.agent_id,
                target=target.name,
            )

    def _not_ready(
        self, agent: AgentKey, route: Route, targets: list[Target], states: list[TargetState], now: float
    ) -> AgentNotReady:
        heard = [self._outcomes.find(_key(agent, route, target)) for target in targets]
        rests = [
            each.rests_until - now
            for each, state in zip(heard, states, strict=True)
            if each is not None and state is not TargetState.DRAINING
        ]
        state = next((state for state in states if state is not TargetState.DRAINING), TargetState.DRAINING)
        return AgentNotReady(
            f"agent {agent.agent_id!r} takes no message just now: it is {state.value}",
            retry_after_s=max(0.05, min(rests, default=_DRAINED_S)),
            agent_id=agent.agent_id,
            state=state.value,
        )

    def _view(self, agent: AgentKey, route: Route, target: Target, home: Home | None, now: float) -> View:
        key = _key(agent, route, target)
        heard = self._outcomes.find(key)
        state, is_own = self._state(key, target, now)
        problem = self._problem(target.url, home)
        takes, why = _why(target, state, is_own, heard, problem, now)
        if route.gone:
            state, takes, why = TargetState.GONE, False, "the agent was declared gone"
        return View(target, state, takes, why, heard, problem)


def _why(
    target: Target, state: TargetState, is_own: bool, heard: Heard | None, problem: str | None, now: float
) -> tuple[bool, str]:
    if target.name and target.weight <= 0:
        return False, "its weight is 0"
    if problem:
        return False, f"its URL is not allowed: {problem}"
    if state is TargetState.DRAINING:
        return False, "it drains: it ends what it has begun"
    if heard is not None and heard.rests(now):
        return (
            False,
            f"it could not be dialled (failures in a row: {heard.failures}); tried again in {heard.rests_until - now:.1f} s",
        )
    if heard is not None and heard.failures:
        return True, "it could not be dialled, and may be tried again"
    if state is TargetState.FAILING and not is_own:
        return True, "somebody saw it fail: only if no other takes messages"
    if state in _STARTING:
        return True, "it must be started first: the first message waits for it"
    return True, "nothing speaks against it"


def _found(route: Route, key: TargetKey) -> Target | None:
    if route.generation != key.generation:
        return None
    return next((target for target in route.takers() if target.name == key.name), None)


def _key(agent: AgentKey, route: Route, target: Target) -> TargetKey:
    return TargetKey(agent.workspace_id, agent.agent_id, route.generation, target.name)
