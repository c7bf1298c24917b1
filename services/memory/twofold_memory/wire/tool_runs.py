"""Tool runs on the wire."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration

from twofold.memory.v1 import tool_run_pb2 as pb
from twofold_chassis import fields
from twofold_chassis.refusals import InvalidField
from twofold_memory.threads import ThreadKey
from twofold_memory.tool_runs import (
    ARGUMENTS_BYTES_MAX,
    ATTEMPTS_DEFAULT,
    ATTEMPTS_MAX,
    BACKOFF_DEFAULT,
    BACKOFF_MAX,
    DELAY_MAX,
    ERROR_BYTES_MAX,
    LEASE_DEFAULT,
    LEASE_MAX,
    NAMES_MAX,
    RESULT_BYTES_MAX,
    Contents,
    NewToolRun,
    State,
    ToolRun,
    ToolRunPage,
)

_VERSION_MAX = 2**63 - 1
_STATES = {state.value: state for state in State}

Named = (
    pb.HeartbeatToolRunRequest
    | pb.CompleteToolRunRequest
    | pb.FailToolRunRequest
    | pb.CancelToolRunRequest
    | pb.RetryToolRunRequest
)
Held = pb.HeartbeatToolRunRequest | pb.CompleteToolRunRequest | pb.FailToolRunRequest
Changed = TypeVar(
    "Changed",
    pb.CreateToolRunResponse,
    pb.ClaimToolRunResponse,
    pb.HeartbeatToolRunResponse,
    pb.CompleteToolRunResponse,
    pb.FailToolRunResponse,
    pb.CancelToolRunResponse,
    pb.RetryToolRunResponse,
)


@dataclass(frozen=True, slots=True)
class Expected:
    """Which run a change is about, and what its caller has seen of it. `attempt` is None for who holds nothing."""

    workspace_id: str
    tool_run_id: str
    version: int
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What is to be claimed: a certain run, or one of these names."""

    workspace_id: str
    run: Expected | None
    names: Sequence[str]
    holder: str
    lease: timedelta


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs are asked for."""

    workspace_id: str
    key: ThreadKey | None
    user_id: str | None
    state: State | None
    name: str | None


def new_tool_run(request: pb.CreateToolRunRequest) -> NewToolRun:
    """The run that is to be made."""
    if not request.HasField("tool_run"):
        raise InvalidField("tool_run", "is required")
    given = request.tool_run
    backoff = BACKOFF_DEFAULT
    if given.HasField("backoff"):
        backoff = fields.span(given.backoff, "tool_run.backoff", most=BACKOFF_MAX)
    return NewToolRun(
        workspace_id=fields.identifier(given.workspace_id, "tool_run.workspace_id"),
        tool_run_id=fields.optional_identifier(given.tool_run_id, "tool_run.tool_run_id") or fields.new_id(),
        thread_id=fields.optional_identifier(given.thread_id, "tool_run.thread_id"),
        turn_id=fields.optional_identifier(given.turn_id, "tool_run.turn_id") or "",
        tool_call_id=fields.optional_identifier(given.tool_call_id, "tool_run.tool_call_id") or "",
        name=fields.identifier(given.name, "tool_run.name"),
        arguments=fields.text(given.arguments, "tool_run.arguments", bytes_max=ARGUMENTS_BYTES_MAX),
        attempts_max=fields.whole_or_default(
            given.attempts_max, "tool_run.attempts_max", default=ATTEMPTS_DEFAULT, most=ATTEMPTS_MAX
        ),
        backoff=backoff,
        body_hash=_body_hash(given),
        metadata=fields.labels(given.metadata, "tool_run.metadata"),
    )


def expected(request: Named) -> Expected:
    """The run that is to be changed by anybody."""
    return Expected(
        workspace_id=fields.identifier(request.workspace_id, "workspace_id"),
        tool_run_id=fields.identifier(request.tool_run_id, "tool_run_id"),
        version=fields.whole(request.version, "version", least=1, most=_VERSION_MAX),
    )


def held(request: Held) -> Expected:
    """The run that is to be changed by who holds it."""
    run = expected(request)
    attempt = fields.whole(request.attempt, "attempt", least=1, most=ATTEMPTS_MAX)
    return Expected(run.workspace_id, run.tool_run_id, run.version, attempt)


def claim(request: pb.ClaimToolRunRequest) -> Claim:
    """What is to be claimed, by whom, for how long."""
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    tool_run_id = fields.optional_identifier(request.tool_run_id, "tool_run_id")
    run = None
    if tool_run_id is not None:
        version = fields.whole(request.version, "version", least=1, most=_VERSION_MAX)
        run = Expected(workspace_id, tool_run_id, version)
        if request.names:
            raise InvalidField("names", "is not allowed with tool_run_id")
    elif request.version:
        raise InvalidField("version", "is only for a claim with tool_run_id")
    elif not 1 <= len(request.names) <= NAMES_MAX:
        raise InvalidField("names", f"are {len(request.names)}, must be 1 to {NAMES_MAX} without tool_run_id")
    return Claim(
        workspace_id=workspace_id,
        run=run,
        names=[fields.identifier(name, f"names[{index}]") for index, name in enumerate(request.names)],
        holder=fields.identifier(request.holder, "holder"),
        lease=lease(request),
    )


def lease(request: pb.ClaimToolRunRequest | pb.HeartbeatToolRunRequest) -> timedelta:
    """How long a lease is."""
    if not request.HasField("lease_duration"):
        return LEASE_DEFAULT
    return fields.span(request.lease_duration, "lease_duration", most=LEASE_MAX)


def result(request: pb.CompleteToolRunRequest) -> str:
    """What came out."""
    return fields.text(request.result, "result", bytes_max=RESULT_BYTES_MAX)


def error(request: pb.FailToolRunRequest) -> str:
    """Why it failed."""
    return fields.text(request.error, "error", bytes_max=ERROR_BYTES_MAX, required=True)


def delay(request: pb.RetryToolRunRequest) -> timedelta | None:
    """How long it is to wait, if the caller says so."""
    return fields.span(request.delay, "delay", most=DELAY_MAX) if request.HasField("delay") else None


def filter_of(request: pb.ListToolRunsRequest) -> Filter:
    """Which runs are asked for."""
    workspace_id = fields.identifier(request.workspace_id, "workspace_id")
    thread_id = fields.optional_identifier(request.thread_id, "thread_id")
    user_id = fields.optional_identifier(request.user_id, "user_id")
    if user_id is not None and thread_id is None:
        # Runs have no users: without a conversation those of all would be listed.
        raise InvalidField("thread_id", "is required with user_id")
    state = None
    if request.state:
        state = _STATES.get(request.state)
        if state is None:
            raise InvalidField("state", "must be one of the states of the contract")
    return Filter(
        workspace_id=workspace_id,
        key=None if thread_id is None else ThreadKey(workspace_id, thread_id),
        user_id=user_id,
        state=state,
        name=fields.optional_identifier(request.name, "name"),
    )


def changed(response: Changed, run: ToolRun) -> bytes:
    """The answer to a change, without what is large or tells of people: answers are remembered for a day."""
    response.tool_run.CopyFrom(message(run))
    return response.SerializeToString()


def message(run: ToolRun, contents: Contents | None = None) -> pb.ToolRun:
    """A run as it goes out."""
    told = pb.ToolRun(
        workspace_id=run.workspace_id,
        tool_run_id=run.tool_run_id,
        thread_id=run.thread_id or "",
        turn_id=run.turn_id,
        tool_call_id=run.tool_call_id,
        name=run.name,
        attempts_max=run.attempts_max,
        backoff=_duration(run.backoff),
        state=pb.ToolRunState.ValueType(run.state.value),
        version=run.version,
        attempt=run.attempt,
        holder=run.holder or "",
        retryable=run.retryable,
        create_time=fields.timestamp(run.created_at),
        update_time=fields.timestamp(run.updated_at),
    )
    if run.due_at is not None:
        due = told.lease_expire_time if run.state is State.RUNNING else told.due_time
        due.FromDatetime(run.due_at)
    if contents is not None:
        told.MergeFrom(
            pb.ToolRun(
                arguments=contents.arguments, metadata=contents.metadata, result=contents.result, error=contents.error
            )
        )
    return told


def claim_response(answer: pb.ClaimToolRunResponse, contents: Contents) -> pb.ClaimToolRunResponse:
    """The claimed run with what its worker must know."""
    answer.tool_run.arguments = contents.arguments
    answer.tool_run.metadata.update(contents.metadata)
    return answer


def list_response(page: ToolRunPage, query: Sequence[object]) -> pb.ListToolRunsResponse:
    """A page of runs."""
    following = fields.page_token(query, [page.runs[-1].number]) if page.more else ""
    return pb.ListToolRunsResponse(tool_runs=[message(run) for run in page.runs], next_page_token=following)


def _body_hash(given: pb.ToolRun) -> bytes:
    """What was asked for: the fields that a caller has a say in."""
    body = pb.ToolRun(
        thread_id=given.thread_id,
        turn_id=given.turn_id,
        tool_call_id=given.tool_call_id,
        name=given.name,
        arguments=given.arguments,
        attempts_max=given.attempts_max,
        backoff=given.backoff if given.HasField("backoff") else None,
        metadata=given.metadata,
    )
    return sha256(body.SerializeToString(deterministic=True)).digest()


def _duration(value: timedelta) -> Duration:
    told = Duration()
    told.FromTimedelta(value)
    return told
