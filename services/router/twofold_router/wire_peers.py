"""Proto ↔ domain for what the router asks of the registry. Pure."""

from collections.abc import Callable
from functools import lru_cache

from twofold.registry.v1 import agent_pb2, change_pb2, permission_pb2, usage_pb2
from twofold_chassis import fields
from twofold_chassis.prices import Price
from twofold_chassis.revisions import revision_of
from twofold_router.agents import Limits
from twofold_router.copies import Told
from twofold_router.knowledge import (
    Place,
    Stamp,
    Thing,
    agent_thing,
    permission_thing,
    plan_thing,
    route_thing,
    user_thing,
    workspace_thing,
)
from twofold_router.ledger import UsageEvent
from twofold_router.outcomes import TargetKey
from twofold_router.permissions import Permission, Verdict
from twofold_router.routes import AgentSettings, Observation, Route, Target, TargetState


def opening(router: change_pb2.WatchRouter, known: Place) -> change_pb2.WatchOpen:
    """Who follows the changes, and from where."""
    opened = change_pb2.WatchOpen(router=router)
    if known.epoch:
        opened.place.CopyFrom(change_pb2.WatchPlace(epoch=known.epoch, revision=known.revision, tag=known.tag))
    return opened


def place(form: change_pb2.WatchPlace) -> Place:
    """A place in the history."""
    return Place(form.epoch, form.revision, form.tag)


def changed_things(change: change_pb2.WatchChange) -> list[Thing]:
    """What a revision changed."""
    return [_THINGS[item.kind](item) for item in change.items if item.kind in _THINGS]


def checkpoint(form: change_pb2.WatchCheckpoint) -> tuple[int, int, int, float, float, int]:
    """What `Knowledge.checked` takes."""
    read_s = form.read_time.ToNanoseconds() / 1e9
    return form.nonce, form.epoch, form.revision, read_s, form.registered_ms / 1000, form.routers


_THINGS: dict[change_pb2.WatchItemKind.ValueType, Callable[[change_pb2.WatchItem], Thing]] = {
    change_pb2.WATCH_ITEM_KIND_WORKSPACE: lambda item: workspace_thing(item.workspace_id),
    change_pb2.WATCH_ITEM_KIND_PLAN: lambda item: plan_thing(item.workspace_id),
    change_pb2.WATCH_ITEM_KIND_USER: lambda item: user_thing(item.workspace_id, item.user_id),
    change_pb2.WATCH_ITEM_KIND_AGENT: lambda item: agent_thing(item.workspace_id, item.agent_id),
    change_pb2.WATCH_ITEM_KIND_ROUTE: lambda item: route_thing(item.workspace_id, item.agent_id),
    change_pb2.WATCH_ITEM_KIND_PERMISSION: lambda item: permission_thing(item.workspace_id, item.user_id, item.agent_id),
}

_VERDICTS = {
    permission_pb2.CHECK_REASON_GRANT: Verdict.GRANT,
    permission_pb2.CHECK_REASON_ROLE: Verdict.ROLE,
    permission_pb2.CHECK_REASON_AGENT_UNKNOWN: Verdict.AGENT_UNKNOWN,
    permission_pb2.CHECK_REASON_AGENT_GONE: Verdict.AGENT_GONE,
}
_WITHOUT_END = {verdict: Permission(verdict) for verdict in Verdict}  # there are as many copies as pairs: these share one


def permission(response: permission_pb2.CheckResponse) -> Told[Permission]:
    """What the registry says of a user and an agent."""
    ends_s = response.expire_time.ToNanoseconds() / 1e9 if response.HasField("expire_time") else None
    verdict = _VERDICTS.get(response.reason, Verdict.DENIED)
    value = _WITHOUT_END[verdict] if ends_s is None else Permission(verdict, ends_s)
    read_s = response.read_time.ToNanoseconds() / 1e9
    return Told(value, _stamp(response.revision_token), is_no=not response.allowed, read_s=read_s)


@lru_cache(maxsize=4096)  # many copies are read at the same revision, and share it
def _stamp(token: bytes) -> Stamp:
    revision = revision_of(token, "revision_token")
    assert revision is not None, "the registry says at which revision it was asked"
    return Stamp(revision.epoch, revision.number)


def told_route(response: agent_pb2.GetAgentResponse) -> Told[Route | None]:
    """Where an agent lives."""
    return Told(route(response), _stamp(response.revision_token), is_no=False)


def route(response: agent_pb2.GetAgentResponse) -> Route:
    """What a turn needs of an agent."""
    agent = response.agent
    settings = agent.settings
    # One of a state that is not known here, a newer registry's, says nothing.
    seen = {each.target: _observation(each) for each in agent.observations if each.state in _OBSERVED}
    return Route(
        url=agent.url,
        published=agent.state == agent_pb2.AGENT_STATE_PUBLISHED,
        settings=AgentSettings(
            instructions=settings.instructions,
            model=settings.model,
            as_messages=settings.context_delivery == agent_pb2.CONTEXT_DELIVERY_MESSAGES,
            context_messages_max=settings.context_messages_max,
            context_tokens_max=settings.context_tokens_max,
            limits=Limits(
                first_token_s=settings.first_token_timeout.ToMicroseconds() / 1e6,
                turn_s=settings.turn_timeout.ToMicroseconds() / 1e6,
            ),
        ),
        generation=agent.generation,
        gone=agent.state == agent_pb2.AGENT_STATE_GONE,
        targets=tuple(Target(target.name, target.url, target.weight, seen.get(target.name)) for target in agent.targets),
        seen=seen.get(""),
        price=Price(
            agent.price.per_message_micros,
            agent.price.per_1000_input_tokens_micros,
            agent.price.per_1000_output_tokens_micros,
        ),
    )


def observation_request(key: TargetKey, seen: Observation) -> agent_pb2.ReportAgentStateRequest:
    """What the registry is told of a target."""
    observation = agent_pb2.AgentObservation(
        target=key.name,
        state=agent_pb2.ObservedState.Value(f"OBSERVED_STATE_{seen.state.name}"),
        generation=key.generation,
        message=seen.message,
    )
    observation.observe_time.FromNanoseconds(round(seen.seen_s * 1e9))
    return agent_pb2.ReportAgentStateRequest(workspace_id=key.workspace_id, agent_id=key.agent_id, observation=observation)


def _observation(form: agent_pb2.AgentObservation) -> Observation:
    return Observation(_OBSERVED[form.state], form.observe_time.ToNanoseconds() / 1e9, form.message)


_OBSERVED = {
    agent_pb2.OBSERVED_STATE_READY: TargetState.READY,
    agent_pb2.OBSERVED_STATE_COLD: TargetState.COLD,
    agent_pb2.OBSERVED_STATE_STARTING: TargetState.STARTING,
    agent_pb2.OBSERVED_STATE_DRAINING: TargetState.DRAINING,
    agent_pb2.OBSERVED_STATE_FAILING: TargetState.FAILING,
}


def usage_event(event: UsageEvent) -> usage_pb2.UsageEvent:
    """The event as the registry takes it."""
    return usage_pb2.UsageEvent(
        event_id=event.event_id,
        user_id=event.user_id,
        agent_id=event.agent_id,
        thread_id=event.thread_id or "",
        event_time=fields.timestamp(event.event_time),
        messages=1,
        input_tokens=event.usage.input_tokens,
        output_tokens=event.usage.output_tokens,
    )
