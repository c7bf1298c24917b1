"""Turns as a caller has them: sent through the router, seen as they stream, remembered for the comparison at the end."""

import time
from dataclasses import dataclass, field

import grpc
from google.protobuf.duration_pb2 import Duration

from twofold.client import Twofold
from twofold.errors.v1.reason_pb2 import Reason
from twofold.memory.v1 import message_pb2
from twofold.refusals import reason
from twofold.router.v1 import turn_pb2
from twofold_cli.demo.narrator import Narrator, took

_TURN_S = 30.0


@dataclass
class Conversation:
    """A user's thread with an agent, and everything that was said in it."""

    twofold: Twofold
    narrator: Narrator
    workspace_id: str
    agent_id: str
    user_id: str
    thread_id: str
    said: list[tuple[int, str]] = field(default_factory=list)

    async def say(self, message: str, *, degraded: str = "") -> str:
        """One turn; returns the agent's answer."""
        began = time.perf_counter()
        self.narrator.step(f"{self.user_id} ▸", message, style="bold magenta")
        pieces: list[str] = []
        started, completed = turn_pb2.Started(), turn_pb2.Completed()
        async for event in self._run(message):
            match event.WhichOneof("event"):
                case "started":
                    started = event.started
                case "delta":
                    pieces.append(event.delta.text)
                case "completed":
                    completed = event.completed
        answer = "".join(pieces)
        self.said += [(message_pb2.ROLE_USER, message), (message_pb2.ROLE_ASSISTANT, answer)]
        self.narrator.step(f"{self.agent_id} ◂", answer, style="bold blue")
        self.narrator.step("", "", _detail(time.perf_counter() - began, started, completed, degraded))
        return answer

    def _run(self, message: str) -> "grpc.aio.UnaryStreamCall[turn_pb2.RunRequest, turn_pb2.RunResponse]":
        request = turn_pb2.RunRequest(
            workspace_id=self.workspace_id,
            agent_id=self.agent_id,
            user_id=self.user_id,
            thread_id=self.thread_id,
            message=message,
        )
        return self.twofold.turns.Run(request, timeout=_TURN_S)

    async def is_refused(self, message: str) -> bool:
        """One turn that must not happen; prints how it was refused."""
        began = time.perf_counter()
        self.narrator.step(f"{self.user_id} ▸", message, style="bold magenta")
        try:
            async for _ in self._run(message):
                pass
        except grpc.aio.AioRpcError as error:
            told = f"{error.code().name} {Reason.Name(reason(error))}: {error.details()}"
            self.narrator.step("refused", told, took(time.perf_counter() - began), style="yellow")
            return error.code() is grpc.StatusCode.PERMISSION_DENIED
        return False


def _detail(seconds: float, started: turn_pb2.Started, completed: turn_pb2.Completed, degraded: str) -> str:
    source = message_pb2.ReadSource.Name(started.context_source).removeprefix("READ_SOURCE_")
    completeness = message_pb2.Completeness.Name(started.context_completeness).removeprefix("COMPLETENESS_")
    durability = message_pb2.Durability.Name(completed.durability).removeprefix("DURABILITY_")
    return " · ".join(
        [
            f"{took(seconds)} in all",
            f"resolve {_ms(started.resolve_duration)}",
            f"context {_ms(started.context_duration)} {source} {completeness} {started.context_messages} messages",
            f"first token {_ms(completed.first_token_duration)}",
            f"{durability}{_place(completed)} in {_ms(completed.keep_duration)}",
            f"DEGRADED: {degraded}" if degraded else "not degraded",
        ]
    )


def _place(completed: turn_pb2.Completed) -> str:
    return f" {completed.first_seq}–{completed.last_seq}" if completed.first_seq else ""


def _ms(duration: Duration) -> str:
    return took(duration.ToNanoseconds() / 1e9)
