"""Proto ↔ domain for explanations. Pure."""

from google.protobuf.duration_pb2 import Duration

from twofold.router.v1 import routing_pb2
from twofold_router import wire
from twofold_router.explaining import Explanation, Fact, Found, Lease
from twofold_router.resolution import Resolution
from twofold_router.targets import View

_TOLD_MAX_S = 10 * 365 * 86_400.0


def explain_response(explained: Explanation) -> routing_pb2.ExplainResponse:
    """All of it."""
    decision = explained.decision
    response = routing_pb2.ExplainResponse(
        summary=explained.summary,
        facts=[_fact(fact) for fact in explained.facts],
        lease=_lease(explained.lease),
        redis=routing_pb2.ExplainedRedis(
            believed_gone=explained.redis.is_believed_gone,
            trouble=explained.redis.trouble,
            generation=explained.redis.generation,
        ),
        generation=explained.generation,
    )
    wire.fill_result(response.decision, decision)
    chosen = decision.target.name if isinstance(decision, Resolution) else None
    for view in explained.views:
        response.targets.append(_target(view, explained.now, is_chosen=view.target.name == chosen))
    return response


def _fact(fact: Fact) -> routing_pb2.ExplainedFact:
    return routing_pb2.ExplainedFact(
        name=fact.name,
        copies=[_copy(found) for found in fact.copies],
        floor=fact.floor,
        rests_on=[
            routing_pb2.ExplainedThing(kind=thing[0], ids=thing[1:], revision=revision) for thing, revision in fact.changes
        ],
    )


def _copy(found: Found) -> routing_pb2.ExplainedCopy:
    return routing_pb2.ExplainedCopy(
        source=wire.SOURCES[found.source],
        value=found.value,
        epoch=found.stamp.epoch,
        revision=found.stamp.revision,
        age=_duration(found.age_s),
        usable=not found.why_not,
        why_not=found.why_not,
    )


def _lease(lease: Lease) -> routing_pb2.ExplainedLease:
    return routing_pb2.ExplainedLease(
        holds=lease.holds,
        words=lease.words,
        length=_duration(lease.lease_s),
        left=_duration(lease.left_s),
        ping_age=_duration(lease.ping_age_s),
        registered_left=_duration(lease.registered_left_s),
        epoch=lease.place.epoch,
        revision=max(0, lease.place.revision),
        base_revision=max(0, lease.base),
        stream_open=lease.stream.is_open,
        stream_age=_duration(lease.stream_age_s),
        stream_trouble=lease.stream.trouble,
        routers=lease.routers,
    )


def _target(view: View, now: float, *, is_chosen: bool) -> routing_pb2.ExplainedTarget:
    target, heard = view.target, view.heard
    form = routing_pb2.ExplainedTarget(
        name=target.name,
        url=target.url,
        weight=target.weight,
        state=wire.STATES[view.state],
        takes_messages=view.takes,
        chosen=is_chosen,
        why=view.why,
    )
    if target.seen is not None:
        form.seen_state = wire.STATES[target.seen.state]
        form.seen_time.FromNanoseconds(round(target.seen.seen_s * 1e9))
        form.seen_message = target.seen.message
    if heard is not None:
        form.dial_failures = heard.failures
        if heard.rests(now):
            form.rest_left.CopyFrom(wire.duration(heard.rests_until - now))
        if heard.reached_at > 0:
            form.reached_age.CopyFrom(wire.duration(max(0.0, now - heard.reached_at)))
        if heard.cold_start_s is not None:
            form.cold_start.CopyFrom(wire.duration(heard.cold_start_s))
    return form


def _duration(seconds: float | None) -> Duration | None:
    return None if seconds is None else wire.duration(min(seconds, _TOLD_MAX_S))
