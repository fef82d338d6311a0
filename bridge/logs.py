"""The log: our own lines and those of the libraries, through one handler and in one form."""

from __future__ import annotations

import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final, Literal

import structlog
from structlog.typing import Processor

FILE_BYTES: Final = 10_000_000
FILE_BACKUPS: Final = 2
"""A log file grows to FILE_BYTES, then starts anew; that many full ones are kept."""


def configure(level: str, form: Literal["console", "json"], file: Path | None = None) -> None:
    """Log lines of `level` and above to stderr, or to `file`.

    Libraries (uvicorn, amqtt, SQLAlchemy, Alembic) say only warnings, and at DEBUG what they call INFO: their own
    DEBUG is a line per database call.
    """
    number = logging.getLevelNamesMapping()[level]
    handler = _handler(file)
    # Some libraries set the level of their own loggers: what is less important than ours ends here.
    handler.setLevel(number)
    in_colour = file is None and sys.stderr.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(form, in_colour),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO if number <= logging.DEBUG else max(number, logging.WARNING))
    logging.getLogger("bridge").setLevel(number)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        # A method below the level does nothing at all: no processor, no formatting.
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _handler(file: Path | None) -> logging.Handler:
    if file is None:
        return logging.StreamHandler(sys.stderr)
    return RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=FILE_BACKUPS, encoding="utf-8")


def _rendering(form: Literal["console", "json"], in_colour: bool) -> list[Processor]:
    if form == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    # A plain traceback: rich's own shows local variables, and with them payloads and passwords.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=in_colour, exception_formatter=plain, pad_event_to=30)]
