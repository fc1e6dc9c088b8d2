"""Structured logs: one JSON object a line on standard error, ids as fields.

Standard library loggers (of the drivers) go the same way. Fields whose names say that they hold a secret are blanked
(promise 12); payloads are never logged by Flint's own code.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import orjson
import structlog

from flint_ops.config import LogSettings

__all__ = ["configure", "get_logger"]

_SECRET = re.compile(r"secret|password|authorization|(^|_)(token|dsn)$|api_key$")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(settings: LogSettings, service: str, instance: str, *, stream: TextIO | None = None) -> None:
    """Sends all logs of the process to `stream` (standard error when None) as JSON lines. May be called again."""
    stream = stream or sys.stderr
    identity = {"service": service, "instance": instance}

    def add_identity(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.update(identity)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        add_identity,
        _redact,
    ]
    level = _LEVELS[settings.level]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_to_json)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_to_json),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Drivers are chatty at info (one line per HTTP request); theirs begin at warning unless somebody debugs.
    root.setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry `module=name`. Cheap; make one per module."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return logger


def _to_json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    for key in event:
        if _SECRET.search(key):
            event[key] = "[redacted]"
    return event
