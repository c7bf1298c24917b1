"""Turns: who asks for one, who listens to one that runs, who ends one."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from twofold_chassis.refusals import InvalidField, NotFound, Reason, RequestReused
from twofold_router.agents import Usage
from twofold_router.asks import Ask, Name
from twofold_router.conversations import Conversations, KeptTurn, TurnKey
from twofold_router.courses import Courses, interrupted, running_elsewhere
from twofold_router.permissions import NotPermitted, Verdict
from twofold_router.resolution import Question, Resolver
from twofold_router.routes import AgentKey
from twofold_router.running import Run, Runs, TurnCancelled
from twofold_router.turn_events import Calls, Completed, Delta, Event, Started

_PERMITS = (Verdict.GRANT, Verdict.ROLE)


class OperationUnknown(NotFound):
    """No operation with this id is known."""

    reason = Reason.REASON_OPERATION_UNKNOWN


class Turns:
    """The turns of this router, for who calls."""

    def __init__(
        self, runs: Runs, courses: Courses, resolver: Resolver, conversations: Conversations, *, router: str
    ) -> None:
        self._runs = runs
        self._courses = courses
        self._resolver = resolver
        self._conversations = conversations
        self._router = router

    async def run(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """The events of a turn. One that runs is joined, and begins otherwise."""
        run = self._runs.find(ask.name)
        if run is not None and run.told:
            await run.over()  # what has ended may be begun again, or asked of memory, once it is done with
            run = self._runs.find(ask.name)
        if run is not None and _may_be_joined(run):
            if not run.ask.wants_the_same(ask):
                raise RequestReused("this operation_id was used for something else", operation_id=ask.operation_id)
            await self._require_permitted(ask.question)
        else:
            run = self._runs.begin(ask, self._courses.through)
        async with aclosing(run.events()) as events:
            async for event in events:
                yield event

    async def attach(self, name: Name, thread_id: str | None, offset: int) -> AsyncGenerator[Event, None]:
        """The events of a turn that was begun before, its text from `offset` on."""
        run = self._find(name, thread_id)
        if run is not None:
            await self._require_permitted(run.ask.question)
            run.require_offset(offset)
            async with aclosing(run.events(offset)) as events:
                async for event in events:
                    yield event
            return
        kept = await self._kept(name, thread_id)
        if kept.agent_id:
            await self._require_permitted(Question(AgentKey(name.workspace_id, kept.agent_id), name.user_id))
        for event in self._told_again(name, kept, offset):
            yield event
        if kept.interrupted:
            raise interrupted(name.operation_id, kept)

    async def cancel(self, name: Name, thread_id: str | None) -> bool:
        """Ends a turn, and returns when it is done with: whether it was ended like this."""
        run = self._find(name, thread_id)
        if run is None:
            await self._kept(name, thread_id)
            return False
        run.stop(TurnCancelled("the turn was cancelled", operation_id=name.operation_id))
        await run.over()
        return run.refusal is not None and run.refusal.reason == Reason.REASON_TURN_CANCELLED

    async def close(self) -> None:
        """Ends all turns that are not answered yet; returns when each is done with."""
        await self._runs.close()

    def _find(self, name: Name, thread_id: str | None) -> Run | None:
        run = self._runs.find(name)
        return run if run is not None and thread_id in (None, run.ask.thread_id) else None

    async def _kept(self, name: Name, thread_id: str | None) -> KeptTurn:
        """The turn as memory keeps it. Raises Busy if it runs elsewhere, and OperationUnknown."""
        if thread_id is not None:
            turn = TurnKey(name.workspace_id, thread_id, name.operation_id)
            for _ in range(2):  # it may be closed between the two questions
                kept = await self._conversations.find(turn, name.user_id)
                if kept is not None:
                    return kept
                holder = await self._conversations.holder(turn, name.user_id)
                if holder is not None:
                    raise running_elsewhere(name.operation_id, holder)
        raise OperationUnknown(f"no operation {name.operation_id!r}", operation_id=name.operation_id)

    def _told_again(self, name: Name, kept: KeptTurn, offset: int) -> list[Event]:
        said = kept.text.encode()
        try:
            rest = said[offset:].decode()
        except UnicodeDecodeError:
            rest = None
        if rest is None or offset > len(said):
            raise InvalidField("text_offset", f"is {offset}; the answer has {len(said)} bytes, in whole characters")
        events: list[Event] = [Started(name.operation_id, self._router, replayed=True)]
        if rest:
            events.append(Delta(rest, offset))
        if kept.calls:
            events.append(Calls(kept.calls))
        if not kept.interrupted:
            events.append(Completed(kept.finish_reason, kept.usage or Usage(0, 0), False, kept.receipt))
        return events

    async def _require_permitted(self, question: Question) -> None:
        ruling = await self._resolver.check(question._replace(least=None))
        if ruling.verdict not in _PERMITS:
            raise NotPermitted(question.agent, question.user_id)


def _may_be_joined(run: Run) -> bool:
    """What has failed is begun again, and what has ended is asked of memory, but where that does not keep it."""
    return run.refusal is None and (run.ended_at is None or run.ask.turn is None)
