"""Tool runs: what an agent asked to be done, who does it, and what came out. Each ends once, whoever crashes on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum

from twofold_chassis.refusals import Aborted, AlreadyExists, FailedPrecondition, NotFound, Reason, VersionMismatch
from twofold_memory.threads import ThreadKey

ARGUMENTS_BYTES_MAX = 1024 * 1024
RESULT_BYTES_MAX = 1024 * 1024
ERROR_BYTES_MAX = 64 * 1024
NAMES_MAX = 20
ATTEMPTS_DEFAULT = 3
ATTEMPTS_MAX = 100
LEASE_DEFAULT = timedelta(seconds=30)
LEASE_MAX = timedelta(hours=1)
BACKOFF_DEFAULT = timedelta(seconds=1)
BACKOFF_MAX = timedelta(hours=1)
DELAY_MAX = timedelta(days=1)


class ToolRunUnknown(NotFound):
    """No such run, or its conversation is deleted or another user's."""

    reason = Reason.REASON_TOOL_RUN_UNKNOWN


class ToolRunExists(AlreadyExists):
    """The id is taken by another run."""

    reason = Reason.REASON_TOOL_RUN_EXISTS


class TransitionIllegal(FailedPrecondition):
    """The run is in a state in which this cannot be done."""

    reason = Reason.REASON_TOOL_RUN_STATE


class LeaseLost(Aborted):
    """Somebody else has taken over."""

    reason = Reason.REASON_LEASE_LOST


class State(Enum):
    """How far a run has come; see ToolRunState in the contract."""

    PENDING = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5


@dataclass(frozen=True, slots=True)
class NewToolRun:
    """A run to be made. `body_hash` tells a repeat of the creation from another run under the same id."""

    workspace_id: str
    tool_run_id: str
    thread_id: str | None
    turn_id: str
    tool_call_id: str
    name: str
    arguments: str
    attempts_max: int
    backoff: timedelta
    body_hash: bytes
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> ThreadKey | None:
        """The conversation that it is for."""
        return None if self.thread_id is None else ThreadKey(self.workspace_id, self.thread_id)


@dataclass(frozen=True, slots=True)
class ToolRun:
    """A run as it is stored, without what is large.

    `attempt` counts those that have begun. `due_at`: from when on it may be claimed; of a running one the end of its lease.
    """

    workspace_id: str
    tool_run_id: str
    number: int
    thread_id: str | None
    turn_id: str
    tool_call_id: str
    name: str
    state: State
    version: int
    attempt: int
    attempts_max: int
    backoff: timedelta
    holder: str | None
    due_at: datetime | None
    retryable: bool
    created_at: datetime
    updated_at: datetime

    def expect(self, version: int, attempt: int | None = None) -> None:
        """Refuses who speaks of another version, or of an attempt that has been taken over. Raises both refusals."""
        if attempt is not None and attempt != self.attempt:
            raise LeaseLost(
                f"this is attempt {self.attempt} by now, not {attempt}", attempt=str(self.attempt), version=str(self.version)
            )
        if version != self.version:
            raise VersionMismatch(f"the version is {self.version}, not {version}", version=str(self.version))

    def claimed(self, holder: str, lease: timedelta, now: datetime) -> "ToolRun":
        """The next attempt begins. Raises TransitionIllegal."""
        if self.due_at is None or self.due_at > now or self.attempt >= self.attempts_max:
            raise self._cannot("claim")
        return self._next(State.RUNNING, attempt=self.attempt + 1, holder=holder, due_at=now + lease)

    def prolonged(self, lease: timedelta, now: datetime) -> "ToolRun":
        """The lease ends later. Raises TransitionIllegal."""
        self._must_run("heartbeat")
        return self._next(State.RUNNING, due_at=now + lease)

    def completed(self) -> "ToolRun":
        """There is a result. Raises TransitionIllegal."""
        self._must_run("complete")
        return self._next(State.SUCCEEDED, holder=None, due_at=None)

    def failed(self, *, retryable: bool) -> "ToolRun":
        """There is an error. Raises TransitionIllegal."""
        self._must_run("fail")
        return self._next(State.FAILED, holder=None, due_at=None, retryable=retryable)

    def cancelled(self) -> "ToolRun":
        """Nobody wants it any more. Raises TransitionIllegal."""
        if self.state not in (State.PENDING, State.RUNNING):
            raise self._cannot("cancel")
        return self._next(State.CANCELLED, holder=None, due_at=None)

    def retried(self, delay: timedelta | None, now: datetime) -> "ToolRun":
        """It may be claimed once more, after the delay, or else the backoff of its attempts. Raises TransitionIllegal."""
        if self.state is not State.FAILED or not self.retryable or self.attempt >= self.attempts_max:
            raise self._cannot("retry")
        waits = delay if delay is not None else backoff(self.backoff, self.attempt)
        return self._next(State.PENDING, due_at=now + waits, retryable=False)

    def _must_run(self, wish: str) -> None:
        if self.state is not State.RUNNING:
            raise self._cannot(wish)

    def _next(self, state: State, **changes: object) -> "ToolRun":
        return replace(self, state=state, version=self.version + 1, **changes)  # type: ignore[arg-type]

    def _cannot(self, wish: str) -> TransitionIllegal:
        return TransitionIllegal(
            f"the tool run is {self.state.name} (attempt {self.attempt} of {self.attempts_max}): cannot {wish} it",
            tool_run_id=self.tool_run_id,
            state=self.state.name,
            wish=wish,
        )


@dataclass(frozen=True, slots=True)
class Contents:
    """What is large of a run, and only read where it is asked for."""

    arguments: str
    metadata: Mapping[str, str]
    result: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class ToolRunPage:
    """Some runs, and whether there are more behind the last one."""

    runs: Sequence[ToolRun]
    more: bool


def backoff(first: timedelta, attempt: int) -> timedelta:
    """How long the retry after this attempt waits: twice as long as the one before, with a bound."""
    return min(first * (1 << min(attempt - 1, 30)), BACKOFF_MAX)


def unknown(tool_run_id: str) -> ToolRunUnknown:
    """The refusal for a run that is not there, as far as the caller may know."""
    return ToolRunUnknown(f"no tool run {tool_run_id!r}", tool_run_id=tool_run_id)
