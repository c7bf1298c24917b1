"""Logs: one JSON object a line on standard output (or plain text for people), through structlog.

Nothing else may write there, nor to standard error once the service is up: what libraries and the interpreter itself would
print is told by its kind and place only, because its text may hold what users have said, or a password.
"""

import logging
import sys
import threading
import traceback
from types import TracebackType

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from twofold_chassis.settings import LogSettings

_FRAMES_MAX = 30


def configure(settings: LogSettings, *, service: str) -> None:
    """Sets up logging of the process. Called once, by the service's main function."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    last: Processor = structlog.processors.JSONRenderer()
    if settings.format == "text":
        last = structlog.dev.ConsoleRenderer(colors=False)

    def named(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service  # no context variable: threads of libraries would not have it
        return event

    structlog.configure(
        processors=[
            named,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(places),
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Library()], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    sys.unraisablehook = lambda told: _uncaught(told.exc_type, told.exc_value, told.exc_traceback)
    threading.excepthook = lambda told: _uncaught(told.exc_type, told.exc_value, told.exc_traceback)


def places(exc_info: ExcInfo) -> str:
    """A traceback without the errors' own text: the kinds of an error and of its causes, and where each arose."""
    error: BaseException | None = exc_info[1]
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(
        f"{''.join(traceback.format_tb(each.__traceback__, -_FRAMES_MAX))}{type(each).__qualname__}\n"
        for each in reversed(chain)
    )


class _Library(logging.Handler):
    """Libraries say too much and with too little care: only that one of them warned, and of what kind of error."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        error = {"error": kind.__qualname__} if kind is not None else {}
        structlog.get_logger("twofold.library").log(record.levelno, "library", logger=record.name, **error)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """What nobody caught: in the main thread, in another one, or where Python can only ignore it."""
    structlog.get_logger("twofold.process").error(
        "uncaught", error=kind.__qualname__, exc_info=(kind, error, trace) if error is not None else None
    )
