"""A Redis Cluster: one connection to each master, and who of them has which key.

Commands with a key go to the node that serves its slot. Those without one (PING, INFO, SCRIPT …) go to every master: the
reply is that of one of them, and if any does not answer, the cluster does not.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError

from twofold_chassis.redis_opening import About, Address, Opening, at
from twofold_chassis.redis_server import RedisServer
from twofold_chassis.redis_wire import Argument, RedisNotAsked, RedisUnavailable, Reply
from twofold_chassis.settings import RedisSettings

_LOOK_PERIOD_S = 0.1
_STEPS_MAX = 3
_KEYLESS = frozenset(
    ("PING", "ECHO", "INFO", "TIME", "SCRIPT", "CLIENT", "CLUSTER", "CONFIG", "ACL", "WAIT", "DBSIZE", "FLUSHALL", "FLUSHDB")
)
_SCRIPTS = frozenset(("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"))
_KEY_SECOND = frozenset(("OBJECT", "XGROUP", "XINFO", "MEMORY"))
_KEY_AFTER_STREAMS = frozenset(("XREAD", "XREADGROUP"))


@dataclass(frozen=True, slots=True, eq=False)
class _Node:
    address: Address
    server: RedisServer


class RedisCluster:
    """The way to all masters of one cluster.

    Who serves what is learned from any node, again whenever one redirects us or does not answer. A command that was
    redirected has not run, so it follows; each step has the budget of one call.
    """

    def __init__(self, settings: RedisSettings, met: Callable[[About], None]) -> None:
        self._settings = settings
        self._budget_s = settings.budget_ms / 1000
        self._met = met
        self._nodes: dict[Address, _Node] = {}
        self._seed = self._node((settings.host, settings.port))
        self._masters: frozenset[_Node] = frozenset()
        self._owners: list[_Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        # So that the generation never falls back when a node is forgotten, and rises when another one is master.
        self._generation = 0
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = float("-inf")
        self._asked = 0
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False
        self.breaker = _Breakers(self)

    async def call(self, command: Sequence[Argument], *, run_id_at: int = 0) -> Reply:
        """One command. Raises RedisUnavailable and NoScriptError; ValueError if the keys of a script lie in two slots.

        `run_id_at`: in this place each node is told its own run_id.
        """
        slot = slot_of(command)
        if slot is None:
            return await self._everywhere(command)
        node, asking = self._owners[slot] or await self._found(slot), False
        for _ in range(_STEPS_MAX):
            try:
                return await node.server.call(command, run_id_at=run_id_at, asking=asking)
            except MovedError as moved:
                node, asking = self._named(moved, by=node), False
                self._owners[slot] = node
                self._adopt(self._masters | {node})
                self._look_soon()
            except AskError as elsewhere:
                node, asking = self._named(elsewhere, by=node), True
            except RedisUnavailable:
                self._look_soon()  # another one may have taken its place, and it will not tell
                raise
        raise RedisUnavailable("sent from node to node")

    async def look(self) -> list[About]:
        """What the masters are that can be seen now, through connections of their own. Raises UnfitRedis."""
        found = await self._seed.server.look()
        if found:
            await self._look()
        others = [node.server.look() for node in self._masters if node is not self._seed]
        return [about for seen in (found, *await asyncio.gather(*others)) for about in seen]

    @property
    def weak(self) -> bool:
        """Whether any master may drop what shall stay."""
        return any(node.server.weak for node in self._masters)

    @property
    def trouble(self) -> str:
        """Why masters did not answer when they were asked last; empty if all did."""
        return "; ".join(node.server.trouble for node in self._masters or (self._seed,) if node.server.trouble)

    @property
    def generation(self) -> int:
        """A number of all connections that are there now; another one after any was made or lost, and after a failover."""
        return self._generation + sum(node.server.generation for node in self._nodes.values())

    def believed_gone(self) -> bool:
        """Whether no master is believed to answer."""
        return all(node.server.breaker.open for node in self._masters or (self._seed,))

    async def close(self) -> None:
        """Waits for what is under way and closes all connections."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))
        await asyncio.gather(*(node.server.close() for node in self._nodes.values()), *self._ending)

    async def _everywhere(self, command: Sequence[Argument]) -> Reply:
        if None in self._owners:
            await self._found(self._owners.index(None))
        replies = await asyncio.gather(*(node.server.call(command) for node in self._masters), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                self._look_soon()
                raise reply
        return replies[0]

    async def _found(self, slot: int) -> _Node:
        """Who serves a slot that nobody was known to."""
        looking = self._look_soon()
        if looking is not None:
            await asyncio.wait((looking,), timeout=self._budget_s)
        node = self._owners[slot]
        if node is None:
            raise RedisNotAsked("no node of the cluster is known to serve it")
        return node

    def _look_soon(self) -> asyncio.Task[None] | None:
        """The look at the cluster that is under way, or one that begins now unless the last one was just before."""
        due = asyncio.get_running_loop().time() - self._looked_at >= _LOOK_PERIOD_S
        if self._looking is None and due and not self._closed:
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(self._looked)
        return self._looking

    def _looked(self, _: asyncio.Task[None]) -> None:
        self._looking = None
        self._looked_at = asyncio.get_running_loop().time()

    async def _look(self) -> None:
        """Asks one node after the other, each time another one first: a node may be cut off and know an old order only."""
        nodes = [*self._nodes.values()]
        self._asked += 1
        begin = self._asked % len(nodes)
        for node in (*nodes[begin:], *nodes[:begin]):
            try:
                ranges: list[Any] = await node.server.call(("CLUSTER", "SLOTS"))
            except RedisUnavailable:
                continue
            if ranges:
                self._learn(ranges, node.address[0])
                return

    def _learn(self, ranges: list[Any], host: str) -> None:
        owners: list[_Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, (name, port, *_), *_ in ranges:
            # Where a node does not know its own name, it is the one under which it was asked.
            owner = self._node(((name or b"").decode() or host, port))
            owners[first : last + 1] = [owner] * (last + 1 - first)
        self._owners = owners
        self._adopt(frozenset(node for node in owners if node is not None))
        for node in [*self._nodes.values()]:
            if node is not self._seed and node not in self._masters:
                self._forget(node)

    def _adopt(self, masters: frozenset[_Node]) -> None:
        if masters != self._masters:
            self._masters = masters
            self._generation += 1

    def _forget(self, node: _Node) -> None:
        del self._nodes[node.address]
        self._generation += node.server.generation
        task = asyncio.create_task(node.server.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _named(self, redirection: AskError, *, by: _Node) -> _Node:
        return self._node((redirection.host or by.address[0], redirection.port))

    def _node(self, address: Address) -> _Node:
        node = self._nodes.get(address)
        if node is None:
            opening = Opening(self._settings, at(address), in_cluster=True)
            server = RedisServer(opening, self._met, budget_s=self._budget_s, node=address)
            node = self._nodes[address] = _Node(address, server)
        return node


class _Breakers:
    """The breakers of all masters, seen as one."""

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster

    @property
    def open(self) -> bool:
        """Whether the whole cluster is believed to be gone."""
        return self._cluster.believed_gone()


def slot_of(command: Sequence[Argument]) -> int | None:
    """The slot of a command's first key; None if it has none. Raises ValueError if a script's keys lie in two slots."""
    name = str(command[0]).upper()
    if name in _KEYLESS:
        return None
    if name not in _SCRIPTS:
        return _slot(command[_key_at(name, command)])
    slots = {_slot(key) for key in command[3 : 3 + int(command[2])]}
    if len(slots) != 1:
        raise ValueError("a script needs a key, and the keys of one script must share a hash tag")
    return slots.pop()


def _key_at(name: str, command: Sequence[Argument]) -> int:
    if name in _KEY_AFTER_STREAMS:
        return 1 + next(index for index, part in enumerate(command) if str(part).upper() == "STREAMS")
    return 2 if name in _KEY_SECOND else 1


def _slot(key: Argument) -> int:
    return key_slot(key if isinstance(key, bytes) else str(key).encode())
