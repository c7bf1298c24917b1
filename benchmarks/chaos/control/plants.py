"""The bugs that are planted into routers: guards of the protocol that are dropped, one at a time."""

from dataclasses import dataclass, field

from benchmarks.chaos.control.writers import Appetite
from benchmarks.chaos.plants import Patch

_KNOWLEDGE = "twofold_router/knowledge.py"
_COPIES = "twofold_router/copies.py"
_RESOLUTION = "twofold_router/resolution.py"
_FOLLOWING = "twofold_router/following.py"
_LIMITS = "twofold_router/limits_redis.py"

_RESTARTS = (("router kill", "router restart"), ("postgres compact",))
_DEAF = (("stream hole", "stream answers held", "stream requests held"),)
_FADING = (("stream fading",),)
_BUSY = Appetite(revokes=0.3, waited=0.2)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug and the schedules it is tried under: faults of these `tracks`, or all that `kind` has.

    `slower`: the limits of time, as so many times the usual ones.
    """

    name: str
    flaw: str
    patches: tuple[Patch, ...]
    tracks: tuple[tuple[str, ...], ...] = ()
    kind: str = "calm"
    gap_s: float = 0.2
    slower: float = 1.0
    appetite: Appetite = field(default_factory=Appetite)
    schedules_max: int = 4


MUTANTS = (
    Mutant("control-none", "nothing: routers and registries as they are", (), kind="past", slower=2.0, schedules_max=2),
    Mutant(
        "control-none-directed",
        "nothing: the same, under faults as they are directed at the others",
        (),
        tracks=(*_RESTARTS, *_DEAF, *_FADING),
        appetite=_BUSY,
        schedules_max=2,
    ),
    Mutant(
        "floor-0-for-unseen",
        "of what no change was seen of, copies of any age are used",
        (
            Patch(
                _KNOWLEDGE, "        floor, floors = self.base, self._floors\n", "        floor, floors = -1, self._floors\n"
            ),
        ),
        tracks=_RESTARTS,
        appetite=_BUSY,
    ),
    Mutant(
        "lease-from-arrival",
        "the lease is counted from when the registry's word arrived, not from when it was asked for",
        (
            Patch(
                _KNOWLEDGE,
                "        if sent_at + self.lease_s > self.lease_until:\n"
                "            self.lease_until = sent_at + self.lease_s\n",
                "        if boot_s() + self.lease_s > self.lease_until:\n"
                "            self.lease_until = boot_s() + self.lease_s\n",
            ),
            Patch(
                _KNOWLEDGE,
                "from twofold_chassis.revisions import Revision\n",
                "from twofold_chassis.clocks import boot_s\nfrom twofold_chassis.revisions import Revision\n",
            ),
        ),
        tracks=_FADING,
        slower=3.0,
        appetite=Appetite(revokes=0.4, hides=0, writers=1, waiters=0, thinking_s=0.8),
        schedules_max=8,
    ),
    Mutant(
        "no-look-before-the-reply",
        "whether the lease still runs is not looked at once more before a copy is answered from",
        (
            Patch(
                _KNOWLEDGE,
                "        return now < self.lease_until and now < self.registered_until\n",
                "        return True\n",
            ),
        ),
        tracks=_DEAF,
        appetite=_BUSY,
    ),
    Mutant(
        "no-floor-before-the-reply",
        "the lease is looked at, but not what has changed since a copy was read",
        (
            Patch(
                _KNOWLEDGE,
                "        return stamp.epoch == self.place.epoch and stamp.revision >= self.floor(things)\n",
                "        return stamp.epoch == self.place.epoch\n",
            ),
        ),
        appetite=_BUSY,
    ),
    Mutant(
        "stamp-at-fill-time",
        "a copy is stamped with the revision known when it is kept, not with that it was read at",
        (
            Patch(
                _COPIES,
                "            stamp = told.stamp if isinstance(told, Told) else _stamp_at_least(place, least)\n",
                "            await asyncio.sleep(0.05)\n            stamp = _stamp_at_least(knowledge.place, least)\n",
            ),
        ),
        appetite=_BUSY,
    ),
    Mutant(
        "token-ignored",
        "a revision that a caller names is not looked at",
        (
            Patch(
                _KNOWLEDGE,
                "        return self.has_passed(least) or least.number <= stamp.revision\n",
                "        return True\n",
            ),
            Patch(
                _RESOLUTION,
                "            await knowledge.until_passed(least, _STREAM_S)\n",
                "            pass\n",
            ),
        ),
        tracks=(("stream slow",),),
        slower=2.0,
        appetite=_BUSY,
    ),
    Mutant(
        "ack-before-applied",
        "a router says that it knows of a change, and learns of it a moment later",
        (
            Patch(
                _FOLLOWING,
                "            knowledge.changed(change.revision, change.tag, wire.changed_things(change))\n"
                "            if change.wait:  # after it is applied, never before\n"
                "                _ack(said, knowledge.place)\n",
                "            if change.wait:\n"
                "                _ack(said, Place(knowledge.place.epoch, change.revision, change.tag))\n"
                "                await asyncio.sleep(0.1)\n"
                "            knowledge.changed(change.revision, change.tag, wire.changed_things(change))\n",
            ),
        ),
        appetite=_BUSY,
    ),
    Mutant(
        "lease-kept-in-a-new-epoch",
        "another history begins, and what was known of the one before is answered from",
        (
            Patch(
                _KNOWLEDGE,
                "        if place.epoch > self.place.epoch:\n"
                "            self.lease_until = _NEVER\n            self.epochs += 1\n",
                "        if place.epoch > self.place.epoch:\n            pass\n",
            ),
            Patch(
                _KNOWLEDGE,
                "        return stamp.epoch == self.place.epoch and stamp.revision >= self.floor(things)\n",
                "        return stamp.revision >= self.floor(things)\n",
            ),
            Patch(
                _KNOWLEDGE,
                "        self.place, self.base = place, place.revision\n",
                "        self.place, self.base = place, -1\n",
            ),
        ),
        tracks=(("postgres copy", "postgres restore"),),
        appetite=_BUSY,
    ),
    Mutant(
        "refused-is-counted",
        "an operation that a limit refuses is counted all the same",
        (
            Patch(
                "twofold_router/lua/count_operation.lua",
                "local counted = answer[1] == 'COUNTED'\n",
                "local counted = answer[1] ~= 'PEEKED'\n",
            ),
        ),
    ),
    Mutant(
        "check-then-increment",
        "how a limit stands is looked at first, and counted a moment later",
        (
            Patch(
                _LIMITS,
                "        reply = await self._run(_COUNT, operation, arguments)\n",
                "        if not peeks:\n"
                "            looked = await self._run(_COUNT, operation, [arguments[0], 'PEEK', *arguments[2:]])\n"
                "            await asyncio.sleep(0.2)\n"
                "            told = zip(looked[2::3], arguments[8::6], arguments[9::6], strict=True)\n"
                "            if all(not amount or used + cost <= amount for used, amount, cost in told):\n"
                "                arguments[10::6] = [1] * len(arguments[10::6])\n"
                "        reply = await self._run(_COUNT, operation, arguments)\n",
            ),
        ),
        appetite=Appetite(spenders=16),
    ),
    Mutant(
        "lost-offset-not-announced",
        "events that the log has dropped are left out without a word",
        (
            Patch(
                "twofold_router/events.py",
                "            told.append(Gap(epoch, offset + 1, run[0].offset - 1))\n",
                "            pass\n",
            ),
        ),
    ),
)
