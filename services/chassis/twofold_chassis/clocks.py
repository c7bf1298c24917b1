"""The clock that leases are counted by."""

import sys
import time

if sys.platform == "linux":

    def boot_s() -> float:
        """Seconds since the machine started, those in which it slept among them: nobody's lease grows while it sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # the next best: stands still while some machines sleep

    def boot_s() -> float:
        """Seconds on a clock that nobody sets."""
        return time.monotonic()
