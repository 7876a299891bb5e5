"""The lines of the log as JSON, with LOG_FORMAT=json: one object each, whatever a client sends.

The names are those of OpenTelemetry, where it has one. uvicorn loads this by log_lines.json in the
process that starts the others, too, so it imports nothing of the service.
"""

import logging
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

import orjson

# The most characters of a line of `logging`.
MAX_LINE = 30_000

# The ids of a request, which are in all of its lines. They are removed at its end, because the
# event loop may keep the context for what comes later on the connection.
request: ContextVar[dict[str, str] | None] = ContextVar("request", default=None)


class Formatter(logging.Formatter):
    """Makes an object of a record, with its traceback as one text."""

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "message": record.getMessage(),
            "logger": record.name,
            **(request.get() or {}),
        }
        if record.exc_info and record.exc_info[0]:
            kind = record.exc_info[0]
            module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
            values["exception.type"] = module + kind.__qualname__
            values["exception.stacktrace"] = self.formatException(record.exc_info)
        return encode_short(values)


def encode(values: Mapping[str, object]) -> str:
    """The object, without a line break. Lone surrogates are written as `\\ud800`."""
    try:
        return orjson.dumps(values, option=orjson.OPT_UTC_Z).decode()
    except TypeError:
        valid = {name: _valid(value) for name, value in values.items()}
        return orjson.dumps(valid, option=orjson.OPT_UTC_Z).decode()


def encode_short(values: Mapping[str, object]) -> str:
    """The object, without the middles of its longest texts if it had MAX_LINE characters."""
    most = MAX_LINE
    while True:
        most //= 2
        line = encode({name: _short(value, most) for name, value in values.items()})
        if len(line) < MAX_LINE:
            return line


def without_middle(text: str, most: int) -> str:
    """The text, without its middle if it has more characters than `most`."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def _short(value: object, most: int) -> object:
    return without_middle(value, most) if isinstance(value, str) else value


def _valid(value: object) -> object:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return value


def handlers() -> Iterator[logging.Handler]:
    """All handlers of `logging`."""
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        yield from getattr(logger, "handlers", ())


def install() -> None:
    """Lets `logging` and `warnings` write JSON from now on."""
    logging.captureWarnings(True)
    last = [] if logging.lastResort is None else [logging.lastResort]
    for handler in [*handlers(), *last]:
        handler.setFormatter(Formatter())
