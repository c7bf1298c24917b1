"""Twofold's Python client.

`Twofold` opens the channels and carries the stubs, `refusals` reads why a call was refused, `ContextProvider` gives an
agent its context before a turn and keeps the exchange after it.
"""

from twofold.client import Twofold
from twofold.context import ContextProvider, ContextUnavailableWarning

__all__ = ["ContextProvider", "ContextUnavailableWarning", "Twofold"]
