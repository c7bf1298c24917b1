"""Doing what a schedule says to registries, routers and their stores, and writing down what was done."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks.chaos.control import truth
from benchmarks.chaos.control.history import Era, History, Pair
from benchmarks.chaos.control.pods import Pods
from benchmarks.chaos.control.world import Registry, Router, World
from benchmarks.chaos.proxy import FaultProxy, Way
from benchmarks.chaos.schedules import Fault, Plan
from twofold_chassis.clocks import boot_s

_SLOW_S = 2.0
# There and back, and until the next ping, it is still fast enough not to count as lost.
_FADING_SHARE = 0.25
# Nobody's lease outlives it.
_FADED_LEASES = 1.3
# The share of faults of the network that hit one way only, of all that are of their kind.
_ONE_ONLY = 0.6


@dataclass
class Done:
    """What was done in one schedule: (name, target, since, until), times from the begin of the load."""

    faults: list[tuple[str, int, float, float]] = field(default_factory=list)


async def inflict(world: World, pods: Pods, plan: Plan, history: History, workspace: str, pairs: Sequence[Pair]) -> Done:
    """Does all of it; at the end everything is up and well."""
    trouble = _Trouble(world, pods, history, workspace, pairs)
    try:
        async with asyncio.TaskGroup() as group:
            for track in plan.tracks:
                group.create_task(trouble.follow(track))
    finally:
        await world.recover()
    history.calm = boot_s()
    return trouble.done


class _Trouble:
    def __init__(self, world: World, pods: Pods, history: History, workspace: str, pairs: Sequence[Pair]) -> None:
        self._world = world
        self._pods = pods
        self._servers = world.servers
        self._history = history
        self._workspace = workspace
        self._pairs = pairs
        self._began = boot_s()
        # While Postgres is exchanged nobody may be let through to it by the end of another fault.
        self._ways_to_postgres = asyncio.Lock()
        self.done = Done()

    async def follow(self, track: Sequence[Fault]) -> None:
        """One track, each fault at its moment or as soon as the one before is over."""
        for fault in track:
            await asyncio.sleep(self._began + fault.at - boot_s())
            since = boot_s()
            await self._inflict(fault)
            self.done.faults.append(
                (fault.name, fault.worker, round(since - self._began, 3), round(boot_s() - self._began, 3))
            )

    async def _inflict(self, fault: Fault) -> None:
        target, _, what = fault.name.partition(" ")
        match target, what:
            case "redis", "kill" | "stop" | "flush" | "copy" | "old":
                await self._redis(fault, what)
            case "postgres", _:
                await self._postgres(fault, what)
            case "database", _:
                async with self._ways_to_postgres:
                    await self._ways(self._chosen(target, fault), fault, what)
            case "redis" | "stream", _:
                await self._ways(self._chosen(target, fault), fault, what)
            case "pod", "kill":
                await self._pods.kill(fault.worker, fault.seconds * fault.dose)
            case "pod", "stop":
                await self._pods.stop(fault.worker, fault.seconds)
            case "router", _:
                await self._process([self._world.routers[fault.worker % len(self._world.routers)]], fault, what)
            case "registry", _:
                await self._process([self._world.registries[fault.worker % len(self._world.registries)]], fault, what)
            case "all", _:
                await self._process(self._world.registries, fault, what.rpartition(" ")[2])
            case _:
                raise AssertionError(f"{fault.name} is no fault")

    # The network -----------------------------------------------------------------------------------------------

    def _chosen(self, target: str, fault: Fault) -> Sequence[FaultProxy]:
        """One of these ways, or all of one end, or all there are."""
        routers, registries = self._world.routers, self._world.registries
        router = routers[fault.worker % len(routers)]
        registry = fault.worker % len(registries)
        if target == "redis":
            return [router.to_redis] if fault.dose < _ONE_ONLY else [other.to_redis for other in routers]
        if target == "database":
            some = [registries[registry]] if fault.dose < _ONE_ONLY else registries
            return [one.to_postgres for one in some]
        if fault.dose < _ONE_ONLY / 2:
            return [router.to_registries[registry]]
        if fault.dose < _ONE_ONLY:
            return router.to_registries
        return [way for other in routers for way in other.to_registries]

    async def _ways(self, proxies: Sequence[FaultProxy], fault: Fault, what: str) -> None:
        if what == "fading":  # slow first, so that the last that is heard comes late; then nothing
            for proxy in proxies:
                proxy.delay(self._world.times.silence * _FADING_SHARE)
            await asyncio.sleep(self._world.times.silence)
        for proxy in proxies:
            await _disturb(proxy, what)
        if what == "cut":
            return
        if what != "slow":
            self._world.down(*proxies)
        await asyncio.sleep(
            max(fault.seconds, _FADED_LEASES * self._world.times.lease) if what == "fading" else fault.seconds
        )
        self._world.up(*proxies)
        for proxy in proxies:
            if fault.dose * 10 % 1 < 0.5:
                proxy.reset()  # what was held is lost, instead of arriving late
            await proxy.heal()

    # Processes -------------------------------------------------------------------------------------------------

    async def _process(self, parts: Sequence[Registry] | Sequence[Router], fault: Fault, what: str) -> None:
        for part in parts:
            self._history.kills += what != "stop" and isinstance(part, Router)
            match what:
                case "stop":
                    part.process.pause()
                case "kill":
                    await part.process.kill()
                case "restart":
                    await part.process.terminate()
                case _:
                    raise AssertionError(f"{fault.name} is no fault")
        self._world.down(*parts)
        await asyncio.sleep(fault.seconds if what == "stop" else fault.seconds * fault.dose)
        self._world.up(*parts)
        if what == "stop":
            for part in parts:
                part.process.resume()
        else:
            await asyncio.gather(*(self._world.restart(part) for part in parts))

    # Stores ----------------------------------------------------------------------------------------------------

    async def _redis(self, fault: Fault, what: str) -> None:
        server, since = self._servers.redis, boot_s()
        match what:
            case "stop":
                server.pause()
                await asyncio.sleep(fault.seconds)
                server.resume()
            case "flush":
                await self._servers.command("FLUSHALL")
            case "copy":
                await self._servers.copy(server)
            case _:
                await (server.kill() if what == "kill" else self._servers.put_back(server))
                await asyncio.sleep(fault.seconds * fault.dose)
                await server.start()
        if what not in ("stop", "copy"):
            self._history.losses.append((since, boot_s()))

    async def _postgres(self, fault: Fault, what: str) -> None:
        server = self._servers.postgres
        since = boot_s()
        match what:
            case "copy":
                await self._servers.copy(server)
                return
            case "restore":
                async with self._ways_to_postgres:
                    await self._restore()
                return
            case "compact":
                await self._world.compact()
                return
            case "stop":
                server.pause()
            case "immediate":
                await self._servers.stop_immediately()
            case _:
                await server.kill()
        self._world.down(server)
        await asyncio.sleep(fault.seconds)
        self._world.up(server)
        if what == "stop":
            server.resume()
            return
        await server.start()
        self._history.restarts.append((since, boot_s()))

    async def _restore(self) -> None:
        """Puts an older copy of Postgres in its place. What was true until then is read before."""
        since = boot_s()
        await close_era(self._world, self._history, self._workspace, self._pairs)
        self._world.down(self._servers.postgres)
        await self._servers.put_back(self._servers.postgres)
        await self._servers.postgres.start()
        connection = await self._world.look_up()
        try:
            head, rows = await truth.rows(connection)
        finally:
            await connection.close()
        states = truth.states_at(rows, self._workspace, self._pairs, head.revision)
        begun = boot_s()
        self._history.eras.append(Era(since, begun, head.revision, states))
        self._history.restarts.append((since, begun))
        self._world.up(self._servers.postgres)
        for registry in self._world.registries:
            await registry.to_postgres.heal()


async def open_era(world: World, history: History, workspace: str, pairs: Sequence[Pair]) -> None:
    """What is true now, before anything is done."""
    connection = await world.look_up()
    try:
        head, rows = await truth.rows(connection)
    finally:
        await connection.close()
    now = boot_s()
    history.eras.append(Era(float("-inf"), now, head.revision, truth.states_at(rows, workspace, pairs, head.revision)))


async def close_era(world: World, history: History, workspace: str, pairs: Sequence[Pair], *, last: bool = False) -> None:
    """Reads what has been true since its begin. Nobody may write any more, unless nobody does anyway."""
    connection = await world.look_up()
    try:
        if not last:
            await world.leave_alone(connection)
        head, rows = await truth.rows(connection)
    finally:
        await connection.close()
    era = history.eras[-1]
    changes = list(truth.changes_after(rows, workspace, pairs, era.revision))
    closed = replace(era, changes=changes, read=boot_s())
    history.eras[-1] = closed if last else replace(closed, epoch_max=head.epoch)


async def _disturb(proxy: FaultProxy, what: str) -> None:
    match what:
        case "hole" | "fading":
            proxy.hold()
        case "requests held":
            proxy.hold(Way.REQUESTS)
        case "answers held":
            proxy.hold(Way.ANSWERS)
        case "slow":
            proxy.delay(_SLOW_S)
        case "cut":
            proxy.cut()
        case "refuse":
            await proxy.refuse()
            proxy.reset()
        case _:
            raise AssertionError(f"{what} is no fault of the network")
