"""Accounts: what a turn has used is recorded, held against the limits, and told to who listens to the agent."""

import json
from datetime import datetime
from typing import Protocol

import structlog

from twofold_chassis.prices import Price, cost_micros
from twofold_chassis.refusals import Reason, Refusal
from twofold_router.agents import Usage
from twofold_router.asks import Ask
from twofold_router.conversations import Debt, Receipt
from twofold_router.events import LogKey, NewEvent, Publisher
from twofold_router.ledger import Ledger, UsageEvent
from twofold_router.limits import Cost, Counted, LimitsSource, Operation, Settled
from twofold_router.owing import Owing

_COMPLETED, _FAILED = "turn.completed", "turn.failed"
_JSON = "application/json"

_logger = structlog.get_logger("twofold.turn")


class Settling(Protocol):
    """The limits, after the fact."""

    async def settle(self, operation: Operation, used: Cost, *, at_s: float | None = None) -> Settled:
        """Puts what it really used in the place of what it was counted with."""
        ...

    async def release(self, operation: Operation) -> None:
        """Takes it back: it was not begun."""
        ...


class Accounts:
    """Closes the accounts of turns. Nothing here fails a turn: what cannot be done now is done by and by, or logged."""

    def __init__(self, ledger: Ledger, owing: Owing, settling: Settling, publisher: Publisher) -> None:
        self._ledger = ledger
        self._owing = owing
        self._settling = settling
        self._publisher = publisher

    async def record(self, ask: Ask, debt: Debt, *, kept: bool) -> bool:
        """Whether the ledger has it. `kept`: memory keeps it until somebody says so."""
        agent = ask.question.agent
        event = UsageEvent(
            event_id=debt.event_id,
            workspace_id=agent.workspace_id,
            user_id=debt.user_id,
            agent_id=debt.agent_id,
            thread_id=ask.thread_id,
            event_time=debt.event_time,
            usage=debt.usage,
        )
        try:
            await self._ledger.record(agent.workspace_id, [event])
        except Refusal as refusal:
            # Reused: this operation was recorded by an earlier call, with what that one used. It counts once.
            if refusal.reason != Reason.REASON_EVENT_REUSED:
                _logger.warning("usage not recorded yet", event_id=event.event_id, reason=Reason.Name(refusal.reason))
                if not kept:
                    self._owing.owe(event)
                return False
        if kept and ask.turn is not None:
            self._owing.recorded(ask.turn)
        return True

    async def settle(self, ask: Ask, counted: Counted, usage: Usage | None, price: Price) -> None:
        """What was counted beforehand becomes what was used, and what that costs at the price."""
        if counted.source is LimitsSource.NONE:
            return
        try:
            await self._settling.settle(_operation(ask), _cost(usage, price), at_s=counted.at_s)
        except Refusal as refusal:
            _logger.debug("not settled", operation_id=ask.operation_id, reason=Reason.Name(refusal.reason))

    async def release(self, ask: Ask, counted: Counted) -> None:
        """What was counted beforehand is taken back."""
        if counted.source is LimitsSource.NONE:
            return
        try:
            await self._settling.release(_operation(ask))
        except Refusal as refusal:
            _logger.debug("not released", operation_id=ask.operation_id, reason=Reason.Name(refusal.reason))

    async def tell(self, ask: Ask, receipt: Receipt | None, usage: Usage | None, cause: str = "") -> None:
        """Publishes that the turn is over: ids and numbers, no content. `cause`: why it failed."""
        agent = ask.question.agent
        told: dict[str, object] = {"operation_id": ask.operation_id, "user_id": ask.question.user_id}
        if ask.thread_id is not None:
            told["thread_id"] = ask.thread_id
        if receipt is not None:
            told |= {"first_seq": receipt.first_seq, "last_seq": receipt.last_seq}
        if usage is not None:
            told |= {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        if cause:
            told["cause"] = cause
        event = NewEvent(_FAILED if cause else _COMPLETED, json.dumps(told, separators=(",", ":")).encode(), _JSON)
        log, once = LogKey(agent.workspace_id, agent.agent_id), f"{ask.operation_id}/turn"
        try:
            await self._publisher.publish(log, [event], request_id=once)
        except Refusal as refusal:
            _logger.debug("turn not told", operation_id=ask.operation_id, reason=Reason.Name(refusal.reason))


def debt(ask: Ask, usage: Usage, at: datetime) -> Debt:
    """The turn's usage as it is to stand in the ledger: a retry says the same."""
    return Debt(
        event_id=f"{ask.operation_id}/0",
        user_id=ask.question.user_id,
        agent_id=ask.question.agent.agent_id,
        event_time=at,
        usage=usage,
    )


def _cost(usage: Usage | None, price: Price) -> Cost:
    if usage is None:  # then nothing is billed, and the message counts all the same
        return Cost(messages=1)
    read, written = usage.input_tokens, usage.output_tokens
    return Cost(messages=1, tokens=read + written, micros=cost_micros(price, 1, read, written))


def _operation(ask: Ask) -> Operation:
    return Operation(ask.question.pair, ask.operation_id)
