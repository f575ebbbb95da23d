"""A line of JSON, or of text, for each record."""

import json
import logging

from runtime.server.logs import JsonLines, TextLines


def record(**extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": "request %s", "args": ("done",), "levelno": 20, **extra})
    made.levelname = "INFO"
    return made


def test_json_has_what_was_given():
    line = json.loads(JsonLines().format(record(status=200, error=None)))
    assert line["message"] == "request done" and line["level"] == "info"
    assert line["status"] == 200 and line["error"] is None


def test_text_is_one_line():
    line = TextLines().format(record(status=200, error=None))
    assert line.endswith("info    request done status=200") and "\n" not in line
