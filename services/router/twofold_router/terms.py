"""Terms: what the registry says of a user's limits, of the workspace's caps, and of where its agents may live."""

from datetime import UTC, datetime
from enum import Enum
from typing import NamedTuple

from twofold_chassis.refusals import Quota, QuotaExhausted, Reason
from twofold_chassis.urls import Home


class LimitKind(Enum):
    """What is limited: of whom, in which span, counted in what."""

    USER_HOUR_MESSAGES = "user_hour_messages"
    USER_MINUTE_MESSAGES = "user_minute_messages"
    AGENT_HOUR_MESSAGES = "agent_hour_messages"
    WORKSPACE_DAY_MESSAGES = "workspace_day_messages"
    WORKSPACE_DAY_TOKENS = "workspace_day_tokens"
    WORKSPACE_DAY_MICROS = "workspace_day_micros"

    # There is one of each; an enum's own hash, of its name, takes ten times as long.
    __hash__ = object.__hash__


class Limit(NamedTuple):
    """How much at most. A shadow is counted and told of, and refuses nobody."""

    kind: LimitKind
    amount: int
    is_shadow: bool = False


class TermsKey(NamedTuple):
    """Whose terms; without a user those of the workspace alone."""

    workspace_id: str
    user_id: str


class Terms(NamedTuple):
    """The limits in force, the month whose hard cap is reached ("2026-03"; empty if none is), and where agents may live."""

    limits: tuple[Limit, ...]
    capped_month: str
    home: Home

    def require_uncapped(self, workspace_id: str, database_s: float) -> None:
        """Refuses if the database's clock shows a moment of the month whose hard cap is reached."""
        if not self.capped_month:
            return
        now = datetime.fromtimestamp(database_s, UTC)
        if f"{now.year:04}-{now.month:02}" == self.capped_month:
            end = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
            raise CapReached(workspace_id, self.capped_month, end.timestamp() - database_s)


class CapReached(QuotaExhausted):
    """The workspace has used what it may use in a month."""

    reason = Reason.REASON_CAP_REACHED

    def __init__(self, workspace_id: str, month: str, left_s: float) -> None:
        super().__init__(
            f"workspace {workspace_id!r} has reached a cap of {month}",
            [Quota(f"workspace:{workspace_id}", f"hard cap of {month}")],
            retry_after_s=left_s,
            workspace_id=workspace_id,
        )
