"""Where something listens: the port that was named, the usual one, or one that is free."""

import errno
import random
import socket
from collections import deque
from dataclasses import dataclass

from twofold_chassis.start import StartError

LOOPBACK = "127.0.0.1"
# Who listens on all addresses is reached on this machine's own.
_REACHED = {"0.0.0.0": LOOPBACK, "::": "[::1]", "[::]": "[::1]"}
PORTS = (15_000, 30_000)
PORT_TRIES = 200
# Ports are asked for some time before they are used: none is given to two.
_GIVEN: deque[int] = deque(maxlen=1000)


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """False when somebody listens there. Whatever else is wrong with the address, who listens there will say."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # The servers set it too: without it, connections that just ended would count as "taken".
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except UnicodeError:
        return True
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


def free_port(preferred: int | None = None, host: str = LOOPBACK) -> int:
    """The preferred one if nobody listens there. It may be taken before it is used: be ready to ask again.

    Others are below the range out of which the kernel serves outgoing connections. Out of that range, while a
    server is down, somebody's connection could take its port; even a client that tries to reach it can, by
    connecting to itself.
    """
    if preferred is not None and is_free(preferred, host):
        return preferred
    for _ in range(PORT_TRIES):
        port = random.randrange(*PORTS)
        if port not in _GIVEN and is_free(port, host):
            _GIVEN.append(port)
            return port
    raise StartError(f"no free port found between {PORTS[0]} and {PORTS[1]} on {host}")


@dataclass(frozen=True, slots=True)
class Wish:
    """The port that is wanted. One that a setting names is had or the start ends; instead of another, any will do."""

    port: int | None = None
    setting: str | None = None
    # Somebody else of the same stack will have it.
    spoken_for: bool = False

    def granted(self, host: str) -> int:
        """The port to listen on. Raises StartError if it was named and is taken."""
        if self.spoken_for:
            return free_port(host=host)
        if self.port is None or self.setting is None or is_free(self.port, host):
            return free_port(self.port, host)
        raise StartError(f"{self.setting} names port {self.port}, which is taken on {host}: free it or name another one")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service should listen."""

    host: str = LOOPBACK
    port: Wish = Wish()
    metrics_port: Wish = Wish()

    @property
    def reached(self) -> str:
        """The host under which others on this machine find it."""
        return _REACHED.get(self.host, self.host)


ANYWHERE = Place()
