"""Branches: conversations that share the beginning of another one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from twofold_chassis.refusals import FailedPrecondition, Reason, ResourceExhausted
from twofold_memory.threads import MessageUnknown, ThreadKey

DEPTH_MAX = 16
# A change of what they share locks them all.
BRANCHES_MAX = 1_000


class MessageShared(FailedPrecondition):
    """The message was said in another conversation, which this one was branched off."""

    reason = Reason.REASON_MESSAGE_SHARED


class TooManyBranches(ResourceExhausted):
    """Messages cannot be shared by more conversations, or over more of them."""

    reason = Reason.REASON_TOO_MANY


@dataclass(frozen=True, slots=True)
class NewBranch:
    """A branch to be made. `at_seq` is the last message to share, None the newest; without a title it gets its parent's."""

    key: ThreadKey
    parent: ThreadKey
    at_seq: int | None
    user_id: str | None
    title: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a conversation's messages stand: ancestors[i] has those up to shared_until[i], oldest first, it has the rest.

    Messages up to `floor_seq` are gone, those from `next_seq` on are not there yet.
    """

    thread_id: str
    ancestors: Sequence[str]
    shared_until: Sequence[int]
    floor_seq: int
    next_seq: int

    def check(self, seq: int) -> None:
        """Raises MessageUnknown if there is no such message."""
        if not self.floor_seq < seq < self.next_seq:
            raise MessageUnknown(f"the conversation has no message {seq}", thread_id=self.thread_id, seq=str(seq))

    def check_own(self, seq: int) -> None:
        """Raises MessageShared if another conversation has the message, MessageUnknown if there is none."""
        owner = self.owner(seq)
        if owner != self.thread_id:
            raise MessageShared(
                f"message {seq} was said in the conversation {owner!r}, which this one was branched off: change it there",
                thread_id=self.thread_id,
                owner_thread_id=owner,
            )

    @property
    def fork_seq(self) -> int:
        """The last message that is shared."""
        return self.shared_until[-1] if self.shared_until else 0

    def forked(self, thread_id: str, at_seq: int | None) -> "Lineage":
        """That of a branch which shares the messages up to `at_seq`. Raises MessageUnknown, TooManyBranches."""
        until = self.next_seq - 1 if at_seq is None else at_seq
        if at_seq:
            self.check(at_seq)
        # Where nothing is left to share, there is nothing to follow changes of.
        shared = [
            (owner, min(last, until)) for after, owner, last in self._segments() if after < until and last > self.floor_seq
        ]
        if len(shared) > DEPTH_MAX:
            raise TooManyBranches(f"a conversation shares its messages with {DEPTH_MAX} others it came from at most")
        return Lineage(
            thread_id,
            [owner for owner, _ in shared],
            [last for _, last in shared],
            self.floor_seq if until else 0,
            until + 1,
        )

    def owner(self, seq: int) -> str:
        """The conversation in which a message was said. Raises MessageUnknown."""
        self.check(seq)
        return next(owner for _, owner, last in self._segments() if seq <= last)

    def _segments(self) -> list[tuple[int, str, int]]:
        """As memory.segments: behind which message it begins, in which conversation it stands, the last message of it."""
        ends = [*self.shared_until, self.next_seq - 1]
        return list(zip([0, *ends[:-1]], [*self.ancestors, self.thread_id], ends, strict=True))
