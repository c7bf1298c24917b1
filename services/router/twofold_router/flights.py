"""One flight per key: callers that want the same thing at the same time share one reading of it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Flights(Generic[Key, Value]):
    """Readings that are under way. A caller that leaves, the first one included, does not end the reading of the others."""

    def __init__(self) -> None:
        self._under_way: dict[Key, asyncio.Task[Value]] = {}

    async def join(self, key: Key, read: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """What `read` returns or raises; if a reading of the key is under way, what that one does."""
        flight = self._under_way.get(key)
        if flight is None:
            flight = asyncio.create_task(read())
            self._under_way[key] = flight
            flight.add_done_callback(lambda done: self._land(key, done))
        return await asyncio.shield(flight)

    def _land(self, key: Key, flight: asyncio.Task[Value]) -> None:
        del self._under_way[key]
        if not flight.cancelled():
            flight.exception()  # all its callers may be gone: that is no "exception was never retrieved"

    async def close(self) -> None:
        """Ends what is under way."""
        flights = list(self._under_way.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
