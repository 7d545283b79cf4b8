"""Logs: one event a line on stderr, as JSON, or in readable form on a terminal.

Rules: input from peers is escaped and truncated, so it cannot forge log lines or make huge ones; values whose names
are those of secrets are masked, also inside URLs; tracebacks show no local variables, which hold payloads and tokens.
Logging never waits for the reader of stderr: see LogQueue.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from snorky.gateway.logs.queue import LogQueue

__all__ = ["configure_logs", "count_dropped_lines", "flush_logs", "log_line"]

FLUSH_S = 1.0  # at the end of the process

VALUE_MAX_CHARACTERS = 500
TRACEBACK_MAX_CHARACTERS = 8_000  # about 80 frames
_SECRET_NAME = re.compile(r"(?i)(^|_)(password|secret|token|api_?key|authorization|cookie|payload)$")
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s@]*@")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class _QueueHandler(logging.Handler):
    """Formats a record in the thread that logs it; another thread writes it."""

    def __init__(self, queue: LogQueue) -> None:
        super().__init__()
        self.queue = queue

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put(self.format(record))
        except Exception:  # a value that cannot be formatted must not stop the code that logs it
            self.handleError(record)

    def flush(self) -> None:
        self.queue.flush(FLUSH_S)


def configure_logs(*, level: str = "info", stream: TextIO | None = None) -> None:
    """Send the events of structlog and of the standard library, from `level` up, to one stream (stderr)."""
    stream = sys.stderr if stream is None else stream
    is_watched = stream.isatty()
    renderer: Any = structlog.processors.JSONRenderer()
    if is_watched:
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if is_watched else "iso", utc=not is_watched),
        structlog.processors.format_exc_info,
        _tame,
    ]
    queue = _queue_for(stream)
    handler: logging.Handler = logging.StreamHandler(stream) if queue is None else _QueueHandler(queue)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # metrics tell as much as a line per request
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _queue_for(stream: TextIO) -> LogQueue | None:
    """Return a queue for a stream with a file descriptor; None: it is in memory, where writes do not block."""
    try:
        return LogQueue(stream.fileno())
    except (OSError, ValueError):
        return None


def _queues() -> list[LogQueue]:
    return [handler.queue for handler in logging.getLogger().handlers if isinstance(handler, _QueueHandler)]


def log_line(line: str) -> None:
    """Write one readable line to stderr, after all earlier log lines; never waits for its reader."""
    queues = _queues()
    for queue in queues:
        queue.put(line)
    if not queues:
        print(line, file=sys.stderr, flush=True)


def flush_logs(timeout_s: float) -> None:
    """Wait up to timeout_s until all lines are written."""
    for queue in _queues():
        queue.flush(timeout_s)


def count_dropped_lines() -> int:
    """Count the lines dropped since the logs were configured, because the reader of stderr was too slow."""
    return sum(queue.dropped for queue in _queues())


def _tame(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if name.startswith("_"):
            continue
        if _SECRET_NAME.search(name):
            event[name] = "***"
        elif name == "exception":
            event[name] = _escaped(str(value)[-TRACEBACK_MAX_CHARACTERS:], keep="\n")
        elif value is not None and not isinstance(value, bool | int | float):
            event[name] = _escaped(_cut(value if isinstance(value, str) else repr(value)))
    return event


def _cut(text: str) -> str:
    if len(text) <= VALUE_MAX_CHARACTERS:
        return text
    return f"{text[:VALUE_MAX_CHARACTERS]}... ({len(text)} characters)"


def _escaped(text: str, *, keep: str = "") -> str:
    def escape(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else ascii(match[0])[1:-1]

    return _CONTROL.sub(escape, _URL_PASSWORD.sub("***@", text))
