"""Logs: one JSON object a line on standard output (or plain text for people), through structlog."""

import logging
import sys

import structlog

from twofold_chassis.settings import LogSettings


def configure(settings: LogSettings, *, service: str) -> None:
    """Sets up logging of the process. Called once, by the service's main function."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    last: tuple[structlog.typing.Processor, ...] = (
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    )
    if settings.format == "text":
        # The usual formatter prints the variables of every frame, and with them what users have said.
        last = (structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    # Libraries say too much and with too little care: only that one of them warned, never its text.
    told = '{"level":"%(levelname)s","event":"library","logger":"%(name)s"}'
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format=told)
