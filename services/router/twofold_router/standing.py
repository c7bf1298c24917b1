"""Standing: how all limits of somebody stand, also where there is no limit."""

from collections.abc import Sequence

from twofold_chassis.clocks import boot_s
from twofold_chassis.refusals import NotFound, PeerUnavailable, Reason
from twofold_chassis.revisions import Revision
from twofold_router.copies import Copies
from twofold_router.counting import Limits
from twofold_router.knowledge import Knowledge, Stamp
from twofold_router.limits import METERS, LimitStatus, Operation, Subject
from twofold_router.permissions import PairKey
from twofold_router.terms import Limit, Terms, TermsKey

_ROUNDS_MAX = 5
_FIRST_PING_S = 1.0


class WorkspaceUnknown(NotFound):
    """There is no such workspace."""

    reason = Reason.REASON_WORKSPACE_UNKNOWN


class Standing:
    """Looks at limits for people; counts nothing."""

    def __init__(self, knowledge: Knowledge, terms: Copies[TermsKey, Terms | None], limits: Limits) -> None:
        self._knowledge = knowledge
        self._terms = terms
        self._limits = limits

    async def of(self, pair: PairKey, least: Revision | None) -> tuple[Sequence[LimitStatus], Stamp]:
        """How the limits of the user, the agent and the workspace stand; those of nobody are left out.

        Raises WorkspaceUnknown, LimitsUnknown, and as the registry.
        """
        terms, stamp = await self._read(TermsKey(pair.workspace_id, pair.user_id), least)
        asked = {Subject.USER: pair.user_id, Subject.AGENT: pair.agent_id, Subject.WORKSPACE: pair.workspace_id}
        in_force = {limit.kind: limit for limit in terms.limits}
        limits = [in_force.get(kind, Limit(kind, 0)) for kind, meter in METERS.items() if asked[meter.subject]]
        return await self._limits.peek(Operation(pair, ""), limits), stamp

    async def _read(self, key: TermsKey, least: Revision | None) -> tuple[Terms, Stamp]:
        await self._knowledge.until_known(_FIRST_PING_S)
        for _ in range(_ROUNDS_MAX):
            held = await self._terms.get(key, least)
            if self._terms.may_answer(key, held, least, boot_s()):
                if held.value is None:
                    raise WorkspaceUnknown(f"no workspace {key.workspace_id!r}", workspace_id=key.workspace_id)
                return held.value, held.stamp
        raise PeerUnavailable("what the registry says cannot be relied on just now", retry_after_s=0.2, peer="registry")
