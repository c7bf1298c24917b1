"""Checks on the wire."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from twofold.registry.v1 import agent_pb2, user_pb2
from twofold.registry.v1 import permission_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_registry.agents import AgentKey, AgentState
from twofold_registry.checks import (
    AgentUser,
    Explanation,
    Facts,
    Found,
    Question,
    Reason,
    UsableAgent,
    judge,
)
from twofold_registry.permissions import GrantKey, Pair
from twofold_registry.resources import Page, Read
from twofold_registry.routers import RouterKey
from twofold_registry.users import Role, UserKey
from twofold_registry.wire import pages
from twofold_registry.wire.permissions import counted, grant_message

_REASONS = {
    Reason.GRANT: pb.CHECK_REASON_GRANT,
    Reason.ROLE: pb.CHECK_REASON_ROLE,
    Reason.NO_GRANT: pb.CHECK_REASON_NO_GRANT,
    Reason.EXPIRED: pb.CHECK_REASON_EXPIRED,
    Reason.WORKSPACE_UNKNOWN: pb.CHECK_REASON_WORKSPACE_UNKNOWN,
    Reason.WORKSPACE_SUSPENDED: pb.CHECK_REASON_WORKSPACE_SUSPENDED,
    Reason.USER_UNKNOWN: pb.CHECK_REASON_USER_UNKNOWN,
    Reason.USER_SUSPENDED: pb.CHECK_REASON_USER_SUSPENDED,
    Reason.AGENT_UNKNOWN: pb.CHECK_REASON_AGENT_UNKNOWN,
    Reason.AGENT_GONE: pb.CHECK_REASON_AGENT_GONE,
}

_ROLES = {role: user_pb2.Role.Value(f"ROLE_{role.name}") for role in Role}
_STATES = {state: agent_pb2.AgentState.Value(f"AGENT_STATE_{state.name}") for state in AgentState}

# Most results of a batch are one of these: they are copied, not built.
_RESULTS = {
    reason: pb.CheckResult(allowed=reason in (Reason.GRANT, Reason.ROLE), reason=form) for reason, form in _REASONS.items()
}

_Asked = pb.CheckRequest | pb.BatchCheckRequest


class Batch(NamedTuple):
    """The pairs of a batch that can be asked for, and for each place of the batch what is wrong with it, if something is."""

    question: Question
    wrong: Sequence[InvalidField | None]


def question(request: pb.CheckRequest) -> Question:
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    pair = Pair(fields.identifier(request.user_id, "user_id"), fields.identifier(request.agent_id, "agent_id"))
    return Question(workspace_id, (pair,), _router(request))


def batch(request: pb.BatchCheckRequest) -> Batch:
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    counted(request.pairs, "pairs")
    pairs: list[Pair] = []
    wrong: list[InvalidField | None] = []
    for index, item in enumerate(request.pairs):
        try:
            pairs.append(_pair(item, index))
            wrong.append(None)
        except InvalidField as refusal:
            wrong.append(refusal)
    return Batch(Question(workspace_id, pairs, _router(request)), wrong)


def explained_key(request: pb.ExplainPermissionRequest) -> GrantKey:
    return GrantKey(
        fields.identifier(request.workspace_id, "workspace_id"),
        fields.identifier(request.user_id, "user_id"),
        fields.identifier(request.agent_id, "agent_id"),
    )


def viewer(request: pb.ListUsableAgentsRequest) -> UserKey:
    return UserKey(fields.identifier(request.workspace_id, "workspace_id"), fields.identifier(request.user_id, "user_id"))


def used(request: pb.ListAgentUsersRequest) -> AgentKey:
    return AgentKey(fields.identifier(request.workspace_id, "workspace_id"), fields.identifier(request.agent_id, "agent_id"))


def list_place(request: pb.ListUsableAgentsRequest | pb.ListAgentUsersRequest, query: UserKey | AgentKey) -> tuple[str, int]:
    """The id the page begins behind, and the size of the page."""
    cursor = fields.page_place(request.page_token, query, str)
    return cursor[0] if cursor else "", fields.page_size(request.page_size)


def checked(read: Read[Found]) -> pb.CheckResponse:
    (facts,) = read.value.facts
    allowed, reason, expires_at = judge(facts)
    return pb.CheckResponse(
        allowed=allowed,
        reason=_REASONS[reason],
        revision_token=read.revision.token(),
        expire_time=_time(expires_at),
        read_time=fields.timestamp(read.value.at),
    )


def all_checked(asked: Batch, read: Read[Found]) -> pb.BatchCheckResponse:
    facts = iter(read.value.facts)
    return pb.BatchCheckResponse(
        results=[_result(wrong, facts) for wrong in asked.wrong],
        revision_token=read.revision.token(),
        read_time=fields.timestamp(read.value.at),
    )


def explained(read: Read[Explanation]) -> pb.ExplainPermissionResponse:
    explanation = read.value
    facts = explanation.facts
    verdict = judge(facts)
    role, state = explanation.role, explanation.agent_state
    return pb.ExplainPermissionResponse(
        allowed=verdict.allowed,
        reason=_REASONS[verdict.reason],
        sentence=explanation.sentence,
        workspace=pb.ExplainedWorkspace(
            exists=facts.workspace_lives,
            suspended=facts.workspace_suspended,
            delete_time=_time(explanation.workspace_deleted_at),
        ),
        user=pb.ExplainedUser(
            exists=facts.role is not None,
            suspended=facts.user_suspended,
            role=_ROLES[role] if role else user_pb2.ROLE_UNSPECIFIED,
            role_implies_use=role is not None and role.implies_use,
            delete_time=_time(explanation.user_deleted_at),
        ),
        agent=pb.ExplainedAgent(
            exists=facts.agent_lives,
            state=_STATES[state] if state else agent_pb2.AGENT_STATE_UNSPECIFIED,
            delete_time=_time(explanation.agent_deleted_at),
        ),
        grant=grant_message(explanation.grant) if explanation.grant else None,
        revision_token=read.revision.token(),
        revision=read.revision.number,
        read_time=fields.timestamp(facts.at),
    )


def usable_agents(user: UserKey, page: Page[UsableAgent]) -> pb.ListUsableAgentsResponse:
    messages, token = pages.filled(page, user, _usable_agent, lambda agent: [agent.agent_id])
    return pb.ListUsableAgentsResponse(agents=messages, next_page_token=token)


def agent_users(agent: AgentKey, page: Page[AgentUser]) -> pb.ListAgentUsersResponse:
    messages, token = pages.filled(page, agent, _agent_user, lambda user: [user.user_id])
    return pb.ListAgentUsersResponse(users=messages, next_page_token=token)


def _pair(item: pb.PermissionPair, index: int) -> Pair:
    user_id, agent_id = item.user_id, item.agent_id
    try:
        return Pair(fields.identifier(user_id, "user_id"), fields.identifier(agent_id, "agent_id"))
    except InvalidField as refusal:  # the path is made only where it is needed: there may be 500 items
        raise InvalidField(f"pairs[{index}].{refusal.field}", refusal.problem) from None


def _router(request: _Asked) -> RouterKey | None:
    router_id = fields.optional_identifier(request.router_id, "router_id")
    incarnation = fields.optional_identifier(request.router_incarnation, "router_incarnation")
    if router_id is None and incarnation is None:
        return None
    if router_id is None or incarnation is None:
        raise InvalidField("router_id" if router_id is None else "router_incarnation", "is required with the other one")
    return RouterKey(router_id, incarnation)


def _result(wrong: InvalidField | None, facts: Iterator[Facts]) -> pb.CheckResult:
    if wrong is not None:
        return pb.CheckResult(error=pb.CheckError(reason=wrong.reason, field=wrong.field, message=wrong.problem))
    verdict = judge(next(facts))
    if verdict.expires_at is None:
        return _RESULTS[verdict.reason]
    return pb.CheckResult(allowed=verdict.allowed, reason=_REASONS[verdict.reason], expire_time=_time(verdict.expires_at))


def _time(at: datetime | None) -> Timestamp | None:
    return fields.timestamp(at) if at is not None else None


def _usable_agent(agent: UsableAgent) -> pb.UsableAgent:
    return pb.UsableAgent(
        agent_id=agent.agent_id,
        display_name=agent.display_name,
        state=_STATES[agent.state],
        reason=_REASONS[agent.reason],
        expire_time=_time(agent.expires_at),
    )


def _agent_user(user: AgentUser) -> pb.AgentUser:
    return pb.AgentUser(
        user_id=user.user_id,
        display_name=user.display_name,
        role=_ROLES[user.role],
        reason=_REASONS[user.reason],
        expire_time=_time(user.expires_at),
    )
