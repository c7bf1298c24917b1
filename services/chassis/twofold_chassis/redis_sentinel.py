"""Where the master is, as the sentinels of its group say."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from redis.exceptions import RedisError

from twofold_chassis.redis_opening import Address, Places, asked, connection_to, said
from twofold_chassis.settings import RedisSettings


def masters(settings: RedisSettings) -> Places:
    """Asks the sentinels before each connection: a failover is followed by whoever has to connect again.

    Each is asked, as one that was cut off may still name a former master; an unreachable one is passed over. What they
    name must still say itself that it is a master.
    """
    password = settings.sentinel_password.get_secret_value() if settings.sentinel_password else None

    async def named(sentinel: Address) -> Address | Exception:
        connection = connection_to(sentinel, settings, password=password)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            answer = await asked(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", settings.sentinel_master)
        except (RedisError, OSError, TimeoutError) as error:
            return error
        finally:
            await connection.disconnect(nowait=True)
        return (answer[0].decode(), int(answer[1])) if answer else RedisError("it knows no such master")

    async def places() -> Sequence[Address]:
        told = await asyncio.gather(*map(named, settings.sentinel_addresses))
        votes = Counter(place for place in told if not isinstance(place, Exception))
        if not votes:
            trouble = "; ".join(f"{said(at)}: {why}" for at, why in zip(settings.sentinel_addresses, told, strict=True))
            raise RedisError(f"no sentinel names a master {settings.sentinel_master!r}: {trouble}")
        return [place for place, _ in votes.most_common()]

    return places
