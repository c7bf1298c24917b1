"""Revocations: sessions whose users may not use their agents any more are closed, by the router that has their pods' links.

A change that the stream of changes tells makes the pairs that rest on what it changed doubtful, and each doubtful pair is
checked again, as for a message. A grant that ends by itself is checked at its end. Redis is not needed for that.
"""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from twofold_chassis.refusals import Refusal
from twofold_router.knowledge import Thing, agent_thing, permission_thing, user_thing, workspace_thing
from twofold_router.permissions import PairKey
from twofold_router.resolution import Question, Resolver, permits
from twofold_router.routes import AgentKey

_AT_ONCE = 16
_AGAIN_S = 0.2
_LOOKED_EACH_S = 60.0
"""A timer stands still while the machine sleeps, so no pair waits longer than that for a look at its end."""


class Revocations:
    """Pairs that have sessions here. `close` closes those of a pair."""

    def __init__(self, resolver: Resolver, close: Callable[[PairKey], None]) -> None:
        self._resolver = resolver
        self._close = close
        self._held: dict[PairKey, int] = {}
        self._resting: dict[Thing, set[PairKey]] = {}
        self._timers: dict[PairKey, asyncio.TimerHandle] = {}
        self._doubtful: dict[PairKey, None] = {}
        self._woken = asyncio.Event()
        self._logger = structlog.get_logger("twofold.sessions")

    def add(self, pair: PairKey, *, known: bool) -> None:
        """One more session of the pair. Unless it is `known` to be permitted just now, it is checked."""
        count = self._held.get(pair, 0)
        self._held[pair] = count + 1
        if not count:
            for thing in _rests_on(pair):
                self._resting.setdefault(thing, set()).add(pair)
        if not known:
            self._doubt([pair])

    def remove(self, pair: PairKey) -> None:
        """One session less."""
        count = self._held.get(pair, 0)
        if count > 1:
            self._held[pair] = count - 1
            return
        self._held.pop(pair, None)
        self._doubtful.pop(pair, None)
        if (timer := self._timers.pop(pair, None)) is not None:
            timer.cancel()
        for thing in _rests_on(pair):
            pairs = self._resting.get(thing, set())
            pairs.discard(pair)
            if not pairs:
                self._resting.pop(thing, None)

    def ends_in(self, pair: PairKey, seconds: float | None) -> None:
        """Its permission ends by itself in so many seconds, or never."""
        if (timer := self._timers.pop(pair, None)) is not None:
            timer.cancel()
        if seconds is not None and pair in self._held:
            delay = min(max(seconds, 0.005), _LOOKED_EACH_S)
            self._timers[pair] = asyncio.get_running_loop().call_later(delay, self._doubt, [pair])

    def changed(self, things: Sequence[Thing] | None) -> None:
        """These have changed; None: anything may have."""
        if things is None:
            self._doubt(list(self._held))
        else:
            for thing in things:
                self._doubt(self._resting.get(thing, ()))

    async def run(self) -> None:
        """Checks what is doubtful, for as long as it runs."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._doubtful:
                pairs = list(self._doubtful)[:_AT_ONCE]
                known = await asyncio.gather(*map(self._check, pairs))
                if not any(known):  # nobody can say just now: what is not known is not closed, nor given up
                    await asyncio.sleep(_AGAIN_S)

    def _doubt(self, pairs: "Sequence[PairKey] | set[PairKey]") -> None:
        for pair in pairs:
            self._doubtful[pair] = None
        if pairs:
            self._woken.set()

    async def _check(self, pair: PairKey) -> bool:
        self._doubtful.pop(pair, None)  # before it is asked: what changes from now on makes it doubtful again
        question = Question(AgentKey(pair.workspace_id, pair.agent_id), pair.user_id)
        try:
            ruling = await self._resolver.check(question)
        except Exception as error:
            # Whatever it was, it must be asked again: else a session could go on that may not.
            if not isinstance(error, Refusal):
                self._logger.error("a permission cannot be checked", exc_info=error)
            self._doubt([pair] if pair in self._held else [])
            return False
        if pair in self._held:
            if permits(ruling):
                self.ends_in(pair, ruling.ends_s)
            else:
                self._close(pair)
        return True


def _rests_on(pair: PairKey) -> tuple[Thing, ...]:
    workspace_id, user_id, agent_id = pair
    return (
        permission_thing(workspace_id, user_id, agent_id),
        user_thing(workspace_id, user_id),
        agent_thing(workspace_id, agent_id),
        workspace_thing(workspace_id),
    )
