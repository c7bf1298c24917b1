"""Answers of a batch are written as they would be written alone, however many of them are alike."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from twofold_chassis.refusals import Refusal
from twofold_router import wire
from twofold_router.agents import Limits
from twofold_router.copies import Source
from twofold_router.knowledge import Stamp
from twofold_router.limits import UNCOUNTED, Counted, LimitsSource
from twofold_router.permissions import NotPermitted, Verdict
from twofold_router.resolution import Resolution, Ruling
from twofold_router.routes import AgentKey, AgentSettings, Route, Target, TargetState
from twofold_router.targets import Choice

SETTINGS = AgentSettings("", "model", False, 1, 1, Limits(1.0, 1.0))
ROUTES = [Route("http://a", True, SETTINGS, generation) for generation in (1, 2)]
CHOICES = [
    Choice(Target("", "http://a", 1), TargetState.READY, None),
    Choice(Target("blue", "http://b", 1), TargetState.COLD, 2.5),
]
COUNTED = Counted("operation", True, 1.5, (), LimitsSource.COUNTED)
SOURCES, AGES = st.sampled_from(Source), st.sampled_from([0.0, 0.25, 61.5])
RULINGS = st.builds(
    Ruling,
    st.sampled_from([Verdict.GRANT, Verdict.ROLE]),
    st.builds(Stamp, st.just(7), st.integers(1, 3)),
    SOURCES,
    AGES,
    AGES,
)
ANSWERS = st.builds(
    Resolution,
    RULINGS,
    st.sampled_from(CHOICES),
    st.sampled_from(ROUTES),
    SOURCES,
    AGES,
    st.sampled_from([UNCOUNTED, UNCOUNTED, COUNTED]),
)
REFUSALS = st.just(NotPermitted(AgentKey("ws", "agent"), "ada"))


@st.composite
def alike(draw: st.DrawFn) -> list[Resolution]:
    """Several of one agent, told apart by the permission."""
    first = draw(ANSWERS)
    return [first] + [first._replace(ruling=draw(RULINGS)._replace(valid_s=first.ruling.valid_s)) for _ in range(3)]


@given(st.lists(st.one_of(alike(), st.lists(st.one_of(ANSWERS, REFUSALS), max_size=4)), max_size=4))
def test_an_answer_of_a_batch_is_what_it_would_be_alone(runs: Sequence[Sequence[Resolution | Refusal]]) -> None:
    results = [result for run in runs for result in run]
    for form, result in zip(wire.batch_response(results).results, results, strict=True):
        if isinstance(result, Resolution):
            assert form.answer == wire.resolve_response(result)
        else:
            assert form.refusal.reason == result.reason
