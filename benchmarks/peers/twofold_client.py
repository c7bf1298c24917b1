"""Twofold through gRPC, with its Python client, in a process of its own like the others."""

import os

from benchmarks import threads
from benchmarks.peers import worker
from twofold.client import Twofold


class _Peer:
    def __init__(self, twofold: Twofold) -> None:
        self._conversations = twofold.conversations
        self._tokens: dict[str, bytes] = {}

    async def append(self, name: str) -> None:
        answer = await self._conversations.AppendTurn(threads.append(f"peer-{name}"))
        self._tokens[name] = answer.thread_token

    async def read(self, name: str) -> list[str]:
        """Verified, as without being asked for anything else."""
        answer = await self._conversations.ReadWindow(threads.window(f"peer-{name}"))
        return [message.content for message in answer.messages]

    async def read_with_token(self, name: str) -> list[str]:
        """At least as new as the last append, as in a conversation that goes on."""
        name = name.removesuffix("_with_token")
        request = threads.window(f"peer-{name}", self._tokens[name])
        return [message.content for message in (await self._conversations.ReadWindow(request)).messages]


async def opened(_: str, __: str) -> _Peer:
    return _Peer(await Twofold(memory=os.environ["PEER_TWOFOLD"]).__aenter__())


if __name__ == "__main__":
    worker.serve(opened)
