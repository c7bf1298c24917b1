"""limits: a moving window and a sliding counter over async Redis, each caller with a user of its own."""

from benchmarks.peers import worker

_AMOUNT = 10**9


class _Peer:
    def __init__(self, redis_url: str) -> None:
        from limits import RateLimitItemPerHour  # type: ignore[import-not-found]
        from limits.aio.storage import RedisStorage  # type: ignore[import-not-found]
        from limits.aio.strategies import (  # type: ignore[import-not-found]
            MovingWindowRateLimiter,
            SlidingWindowCounterRateLimiter,
        )

        storage = RedisStorage(f"async+{redis_url}", implementation="redispy")
        # A window that keeps each hit cannot be asked for as many as nobody ever reaches: its list is cut at the amount.
        self._exact, self._few = MovingWindowRateLimiter(storage), RateLimitItemPerHour(1000)
        self._approximate, self._many = SlidingWindowCounterRateLimiter(storage), RateLimitItemPerHour(_AMOUNT)

    async def hit_moving_window(self, name: str) -> None:
        await self._exact.hit(self._few, "peer", name)

    async def hit_sliding_window_counter(self, name: str) -> None:
        if not await self._approximate.hit(self._many, "peer", name):
            raise RuntimeError("refused")


async def opened(_: str, redis_url: str) -> _Peer:
    return _Peer(redis_url)


if __name__ == "__main__":
    worker.serve(opened, converses=False)
