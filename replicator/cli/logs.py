"""Where the log goes: lines for people, or JSON lines for machines, always on stderr.

    2026-11-24T07:38:57Z WARNING us-eu orders-3: paused: target: NOT_LEADER_OR_FOLLOWER: another broker leads ...
    {"time": "2026-11-24T07:38:57Z", "level": "warning", "message": "us-eu orders-3: paused: ..."}

A line that reports figures has them as `fields` (logging's `extra`), and they become keys of its JSON line.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator

log = logging.getLogger("replicator")


class LineFormatter(logging.Formatter):
    """Time in UTC, level, and the message on one line: a traceback's lines follow it."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%SZ"
    default_msec_format = ""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")


class JsonFormatter(LineFormatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class PrintHandler(logging.Handler):
    """Hands lines to a function that knows how to put them above a live display."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        super().__init__()
        self._print_line = print_line

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._print_line(self.format(record))
        except Exception:
            self.handleError(record)


def set_up_logging(level: int, *, as_json: bool = False) -> None:
    """Sends the package's log to stderr. Takes the place of an earlier set-up."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level)


@contextlib.contextmanager
def logging_to(print_line: Callable[[str], None]) -> Iterator[None]:
    """Lines go to this function while the context is open, at the level that was set up."""
    handlers, handler = log.handlers[:], PrintHandler(print_line)
    handler.setFormatter(LineFormatter())
    log.handlers[:] = [handler]
    try:
        yield
    finally:
        log.handlers[:] = handlers
