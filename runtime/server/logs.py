"""Logs, a line each, without sequences: JSON for machines, text for people."""

import datetime
import json
import logging
import sys
from typing import Any

_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, and what was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
            .isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }  # fmt: skip
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """Time, level, message, and what was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        time = datetime.datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        given = [f"{name}={value}" for name, value in _extra(record).items() if value is not None]
        line = " ".join([time, f"{record.levelname.lower():<7}", record.getMessage(), *given])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def log_lines(level: str, form: str) -> None:
    """Sends all logs to stderr.

    Args:
        level: from which on.
        form: ``json``, ``text``, or ``auto``: text on a terminal.
    """
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Its lines say less than ours, and in other words.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _FIELDS}
