"""Trying a planted bug of the control plane: the schedules that are directed at it, until one is caught."""

import tempfile
from pathlib import Path

from benchmarks.chaos.control.command import load_s
from benchmarks.chaos.control.plants import Mutant
from benchmarks.chaos.control.run import run
from benchmarks.chaos.control.schedules import directed, planned
from benchmarks.chaos.control.world import Servers, raise_world, times
from benchmarks.chaos.outcomes import TOLD_MAX, Outcome, planted
from twofold_chassis.start import StartError


async def tried(servers: Servers, mutant: Mutant, number: int, seed: int) -> Outcome:
    """Runs schedules until one is caught."""
    limits = times(mutant.slower)
    with tempfile.TemporaryDirectory(prefix="twofold-mutant-") as name:
        folder = Path(name)
        try:
            planted(mutant.patches, folder)
        except ValueError as error:
            return Outcome(mutant, {}, 0, f"does not apply: {error}")
        try:
            async with raise_world(servers, f"mutant_{number}", limits, code=folder) as world:
                for count in range(mutant.schedules_max):
                    if mutant.tracks:
                        plan = directed(seed + count, load_s(limits), limits.lease, mutant.tracks, gap_s=mutant.gap_s)
                    else:
                        plan = planned(seed + count, load_s(limits), limits.lease, kind=mutant.kind)
                    judgement = (await run(world, plan, appetite=mutant.appetite)).judgement
                    if judgement.violations:
                        some = tuple(judgement.violations[:TOLD_MAX])
                        return Outcome(mutant, dict(judgement.kinds()), count + 1, violations=some)
        except StartError as error:
            return Outcome(mutant, {}, 0, f"does not run: {error}")
    return Outcome(mutant, {}, mutant.schedules_max)
