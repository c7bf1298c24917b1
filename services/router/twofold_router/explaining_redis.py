"""How Redis stands, for who asks why."""

from collections.abc import Callable

from twofold_chassis.redis import RedisLink
from twofold_router.explaining import RedisState


def redis_state(link: RedisLink) -> Callable[[], RedisState]:
    """What this link saw last; nothing is asked for it."""
    return lambda: RedisState(link.breaker.open, link.trouble, link.generation)
