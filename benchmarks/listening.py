"""Subscribers of one agent's events, as a process: `python -m benchmarks.listening target workspace agent count`.

Says "ready" once all of them are told events; then, for each line that it reads, how many events all of them were told so
far, how many are missing by what they were told, and the median and 99th percentile of the delays since the line before.
"""

import asyncio
import statistics
import sys
import time

import grpc

from twofold.router.v1 import event_pb2
from twofold.router.v1.event_pb2_grpc import EventServiceStub

_CONNECTIONS = 2
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


class Ears:
    """What all subscribers were told."""

    def __init__(self) -> None:
        self.told = 0
        self.missing = 0
        self.delays_ms: list[float] = []

    async def listen(self, events: EventServiceStub, workspace_id: str, agent_id: str, ready: asyncio.Event) -> None:
        """Listens for ever."""
        call = events.Subscribe()
        agents = [event_pb2.SubscribeAgent(agent_id=agent_id)]
        opening = event_pb2.SubscribeOpen(workspace_id=workspace_id, agents=agents)
        await call.write(event_pb2.SubscribeRequest(open=opening))
        async for response in call:
            if response.HasField("events"):
                self.told += len(response.events.events)
                oldest = response.events.events[0].publish_time
                self.delays_ms.append((time.time() - oldest.seconds - oldest.nanos / 1e9) * 1000)
            elif response.HasField("gap"):
                self.missing += response.gap.last_offset - response.gap.first_offset + 1
            elif response.HasField("caught_up"):
                ready.set()

    def said(self) -> str:
        """What is known now; delays begin anew."""
        delays, self.delays_ms = self.delays_ms, []
        cuts = statistics.quantiles(delays, n=100) if len(delays) > 1 else [0.0] * 99
        return f"{self.told} {self.missing} {cuts[49]:.3f} {cuts[98]:.3f}"


async def main(target: str, workspace_id: str, agent_id: str, count: int) -> None:
    """Listens until nobody asks any more."""
    ears = Ears()
    stubs = [EventServiceStub(grpc.aio.insecure_channel(target, options=_OPTIONS)) for _ in range(_CONNECTIONS)]
    ready = [asyncio.Event() for _ in range(count)]
    tasks = [
        asyncio.create_task(ears.listen(stubs[number % _CONNECTIONS], workspace_id, agent_id, event))
        for number, event in enumerate(ready)
    ]
    for event in ready:
        await event.wait()
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(ears.said(), flush=True)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
