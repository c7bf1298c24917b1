"""Who resolves operations that count: with repeats, other routers, settling, releasing and records in the ledger."""

import asyncio
import random
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks.chaos.control.spending import Operation, Spending, Used
from twofold import refusals
from twofold.errors.v1.reason_pb2 import Reason
from twofold.registry.v1 import agent_pb2, usage_pb2, user_pb2, workspace_pb2
from twofold.registry.v1.agent_pb2_grpc import AgentServiceStub
from twofold.registry.v1.usage_pb2_grpc import UsageServiceStub
from twofold.registry.v1.user_pb2_grpc import UserServiceStub
from twofold.registry.v1.workspace_pb2_grpc import WorkspaceServiceStub
from twofold.router.v1 import limit_pb2, routing_pb2
from twofold.router.v1.limit_pb2_grpc import LimitServiceStub
from twofold.router.v1.routing_pb2_grpc import RoutingServiceStub
from twofold_chassis.clocks import boot_s

LIMIT = 60
USERS = tuple(f"user-{number}" for number in range(12))
AGENT = "agent"
_CALLS_S = (0.3, 0.6, 2.0)
_THINKING_S = (0.0, 0.04)
# Whose turn it is, so that there is something to be let through all the time.
_TURN_S = 1.5
_ATTEMPTS = 4
_SETTLING_ATTEMPTS = 30
_AGAIN_S = 0.2
_RELEASED, _LEFT, _REPEATED = 0.1, 0.1, 0.15
_COUNTED_S = 20.0
_SIZES = (1, 1, 1, 2)

_Code = grpc.StatusCode
_CANNOT_TELL = (_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.CANCELLED)


async def furnish(channel: grpc.aio.Channel, workspace: str) -> None:
    """A workspace where all users may use the one agent, within a limit."""
    limit = workspace_pb2.Limit(kind=workspace_pb2.LIMIT_KIND_USER_HOUR_MESSAGES, amount=LIMIT)
    draft = workspace_pb2.Workspace(workspace_id=workspace, display_name="Limits")
    draft.settings.limits.append(limit)
    await WorkspaceServiceStub(channel).CreateWorkspace(workspace_pb2.CreateWorkspaceRequest(workspace=draft))
    for user_id in USERS:
        user = user_pb2.User(workspace_id=workspace, user_id=user_id, email=f"{user_id}@chaos.test")
        user.role = user_pb2.ROLE_ADMIN
        await UserServiceStub(channel).CreateUser(user_pb2.CreateUserRequest(user=user))
    agent = agent_pb2.Agent(workspace_id=workspace, agent_id=AGENT, display_name="Agent")
    agent.url, agent.state = "http://agent.agents.svc.cluster.local", agent_pb2.AGENT_STATE_PUBLISHED
    await AgentServiceStub(channel).CreateAgent(agent_pb2.CreateAgentRequest(agent=agent))


class Spender:
    """One who spends, at any router."""

    def __init__(
        self,
        routers: Sequence[grpc.aio.Channel],
        registries: Sequence[grpc.aio.Channel],
        spending: Spending,
        chance: random.Random,
        workspace: str,
    ) -> None:
        self._routing = [RoutingServiceStub(channel) for channel in routers]
        self._limits = [LimitServiceStub(channel) for channel in routers]
        self._usage = [UsageServiceStub(channel) for channel in registries]
        self._spending = spending
        self._chance = chance
        self._workspace = workspace
        self._began = boot_s()

    async def begin(self) -> None:
        """Returns when there are counters: setting them up for the first time is as after a loss."""
        request = limit_pb2.GetLimitsRequest(workspace_id=self._workspace, user_id=USERS[0], agent_id=AGENT)
        for stub in self._limits:
            for _ in range(_SETTLING_ATTEMPTS):
                with suppress(grpc.aio.AioRpcError):
                    await stub.GetLimits(request, timeout=_CALLS_S[-1])
                    break
                await asyncio.sleep(_AGAIN_S)

    async def run(self, enough: asyncio.Event) -> None:
        """Spends until it is enough."""
        async with asyncio.TaskGroup() as after:
            while not enough.is_set():
                await self._spend(after)
                await asyncio.sleep(self._chance.uniform(*_THINKING_S))

    async def count(self) -> None:
        """Asks how the limits stand, until that is at least what must be counted, or it is hopeless."""
        for user in USERS:
            until = boot_s() + _COUNTED_S
            told = -1
            while told < max(0, self._spending.least(user)) and boot_s() < until:
                request = limit_pb2.GetLimitsRequest(workspace_id=self._workspace, user_id=user)
                with suppress(grpc.aio.AioRpcError):
                    answer = await self._chance.choice(self._limits).GetLimits(request, timeout=_CALLS_S[-1])
                    (told,) = (
                        limit.used
                        for limit in answer.limits
                        if limit.kind == workspace_pb2.LIMIT_KIND_USER_HOUR_MESSAGES and limit.subject == f"user:{user}"
                    )
                await asyncio.sleep(_AGAIN_S if told < self._spending.least(user) else 0)
            if told >= 0:
                self._spending.used.append(Used(user, told))

    async def _spend(self, after: asyncio.TaskGroup) -> None:
        turn = int((boot_s() - self._began) / _TURN_S) % len(USERS)
        user = USERS[turn] if self._chance.random() < 0.8 else self._chance.choice(USERS)
        operation = Operation(user, self._chance.choice(_SIZES), boot_s())
        self._spending.operations.append(operation)
        operation_id = str(uuid.UUID(int=self._chance.getrandbits(128)))
        for _ in range(_ATTEMPTS):
            answer = await self._resolve(operation, operation_id)
            if answer is not None:
                after.create_task(self._end(operation, operation_id, answer))
                return
            if operation.refused:
                return

    async def _resolve(self, operation: Operation, operation_id: str) -> routing_pb2.ResolveResponse | None:
        """One attempt: None if nobody knows what became of it, or it was refused."""
        request = routing_pb2.ResolveRequest(
            workspace_id=self._workspace, user_id=operation.user, agent_id=AGENT, operation_id=operation_id
        )
        request.cost.messages, request.cost.tokens = operation.messages, 100
        try:
            answer = await self._chance.choice(self._routing).Resolve(request, timeout=self._chance.choice(_CALLS_S))
        except grpc.aio.AioRpcError as error:
            self._note(operation, error)
            return None
        operation.local |= answer.limits_source == limit_pb2.LIMITS_SOURCE_LOCAL_SHARE
        if operation.admitted is None:
            operation.admitted = boot_s()
        return answer

    def _note(self, operation: Operation, error: grpc.aio.AioRpcError) -> None:
        reason = refusals.reason(error)
        if error.code() is _Code.RESOURCE_EXHAUSTED and reason == Reason.REASON_LIMIT_REACHED:
            if operation.admitted is not None:
                self._spending.repeated_in_vain.append((operation, boot_s()))
            operation.refused = True
        elif error.code() in _CANNOT_TELL or reason == Reason.REASON_OVERLOADED:
            operation.may_count = True
        elif not self._spending.forgettings:  # an older Postgres may not know of anything
            detail = f"{error.code().name} {Reason.Name(reason)}: {error.details()}"
            self._spending.wrong.append((boot_s(), detail))

    async def _end(self, operation: Operation, operation_id: str, answer: routing_pb2.ResolveResponse) -> None:
        drawn = self._chance.random()
        if drawn < _LEFT:
            return
        if drawn < _LEFT + _REPEATED:
            await self._resolve(operation, operation_id)
        if drawn > 1 - _RELEASED:
            await self._release(operation, operation_id)
            return
        if await self._record(operation, operation_id, answer.count_time):
            await self._settle(operation, operation_id, answer.count_time)

    async def _release(self, operation: Operation, operation_id: str) -> None:
        operation.may_be_released = True
        request = limit_pb2.ReleaseOperationRequest(
            workspace_id=self._workspace, user_id=operation.user, agent_id=AGENT, operation_id=operation_id
        )
        for _ in range(_SETTLING_ATTEMPTS):
            with suppress(grpc.aio.AioRpcError):
                await self._chance.choice(self._limits).ReleaseOperation(request, timeout=_CALLS_S[-1])
                # One that a router holds in its share, another does not know: then it stays as it is.
                operation.released = not operation.local and not operation.may_count
                return
            await asyncio.sleep(_AGAIN_S)

    async def _record(self, operation: Operation, operation_id: str, count_time: Timestamp) -> bool:
        event = usage_pb2.UsageEvent(
            event_id=f"{operation_id}/0", user_id=operation.user, agent_id=AGENT, messages=operation.messages
        )
        event.event_time.CopyFrom(count_time)
        request = usage_pb2.RecordUsageRequest(workspace_id=self._workspace, events=[event])
        for _ in range(_SETTLING_ATTEMPTS):
            with suppress(grpc.aio.AioRpcError):
                await self._chance.choice(self._usage).RecordUsage(request, timeout=_CALLS_S[-1])
                operation.recorded = boot_s()
                return True
            await asyncio.sleep(_AGAIN_S)
        return False

    async def _settle(self, operation: Operation, operation_id: str, count_time: Timestamp) -> None:
        cost: dict[str, Any] = {"messages": operation.messages, "tokens": self._chance.randrange(200)}
        request = limit_pb2.SettleOperationRequest(
            workspace_id=self._workspace,
            user_id=operation.user,
            agent_id=AGENT,
            operation_id=operation_id,
            cost=limit_pb2.OperationCost(**cost),
            operation_time=count_time,
        )
        for _ in range(_SETTLING_ATTEMPTS):
            with suppress(grpc.aio.AioRpcError):
                await self._chance.choice(self._limits).SettleOperation(request, timeout=_CALLS_S[-1])
                operation.settled = True
                return
            await asyncio.sleep(_AGAIN_S)
