"""What is said in every conversation that is measured, and whether it comes back. Needs nothing but the standard library."""

from collections.abc import Sequence

WINDOW = 20
ASKED = "Could you tell me whether my order has been sent already? It is number 4711."
ANSWERED = "It left our warehouse this morning and should be with you the day after tomorrow, before noon."


def check_exchanges(contents: Sequence[str]) -> None:
    """That these are the newest exchanges, word for word. Raises RuntimeError."""
    if list(contents) != [ASKED, ANSWERED] * (WINDOW // 2):
        raise RuntimeError(f"a window of {len(contents)} messages, and not what was said")
