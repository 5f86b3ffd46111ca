"""Logs: one JSON object (or, on a terminal, one line) per event, to standard error. Never a token, never a body.

What must not be logged is kept out here, once, whatever a caller passes:

- values under forbidden keys are dropped, at any depth, and the event says so (``withheld``);
- only plain values are logged: of any other object only its type, because a command's repr shows its body;
- whatever looks like a JWT is masked, wherever in a text it stands, exception texts included.

The ids of an HTTP request (request, user, client, method, path) are bound with ``structlog.contextvars`` where it
begins, so that every line on its way has them, but for what its command sets going: that goes on for others as well. A
command of a connection has no context of its own, which would cost each of them; the lines about one name user,
connection, command, request and conversation themselves.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Final, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

FORBIDDEN_KEYS: Final = frozenset(
    {
        "authorization",
        "bearer",
        "body",
        "bodies",
        "cookie",
        "entries",
        "frame",
        "jwt",
        "metadata",
        "password",
        "payload",
    }
    | {"secret", "token", "tokens"}
)
"""Keys whose values are never logged, in lower case; keys that end in one of them after an underscore likewise."""

VALUE_CHARS_MAX: Final = 8_192
"""Characters of one logged text: a traceback fits, a flood does not."""

DEPTH_MAX: Final = 6
"""Levels of nested lists and maps that are logged."""

_JWT: Final = re.compile(r"eyJ[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){1,2}")
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


_NOISE: Final = (
    "[control connection] Error connecting to",
    "Control connection failed to connect, shutting down Cluster",
    "Server warning: `USE <keyspace>` with prepared statements",
)
"""How lines of Cassandra's driver begin that say, once for each attempt, what the node says itself in better words; or
what is no fault here (there is one keyspace, so no table's name is ambiguous)."""


def configure(log_format: str, log_level: str, stream: TextIO | None = None, *, node: str = "") -> None:
    """Set structlog and the standard library's logging up for this process.

    Args:
        log_format: ``json``, ``console``, or ``auto``: console when ``stream`` is a terminal.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        stream: where lines go; standard error if not given.
        node: put into every line, where several nodes write to one stream.
    """
    stream = sys.stderr if stream is None else stream
    lines = cast("TextIO", _Lines(stream))
    level = _LEVELS[log_level]
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        *([_naming(node)] if node else []),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        withhold,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=lines),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, withhold, renderer],
        )
    )
    handler.addFilter(_tell_of_driver)
    # Libraries say little at their warning level and too much below it.
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


class _Lines:
    """Where lines go. What cannot be written is lost: a full disk below the log must not end a node that serves."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _tell_of_driver(record: logging.LogRecord) -> bool:
    """Whether to log a line of a library: a server that cannot be reached is no bug, and takes no traceback."""
    if not record.name.startswith("cassandra."):
        return True
    if record.exc_info and record.exc_info[1] is not None:
        record.msg = f"{record.getMessage()} {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        record.args, record.exc_info = (), None
    return not record.getMessage().startswith(_NOISE)


def _naming(node: str) -> Processor:
    """The processor that says which node it is."""

    def name(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("node", node)
        return event

    return name


def withhold(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The structlog processor that keeps tokens and bodies out."""
    withheld: list[str] = []
    clean = {key: _clean(value, withheld, 0) for key, value in event.items() if not _forbidden(key, withheld)}
    if withheld:
        clean["withheld"] = sorted({*withheld, *(clean.get("withheld") or ())})
    return clean


def _forbidden(key: object, withheld: list[str]) -> bool:
    name = str(key).lower()
    if name in FORBIDDEN_KEYS or name.rpartition("_")[2] in FORBIDDEN_KEYS:
        withheld.append(str(key))
        return True
    return False


def _clean(value: Any, withheld: list[str], depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _masked(value)
    if depth < DEPTH_MAX:
        if isinstance(value, Mapping):
            kept: MutableMapping[str, Any] = {}
            for key, inner in value.items():
                if not _forbidden(key, withheld):
                    kept[_masked(str(key))] = _clean(inner, withheld, depth + 1)
            return kept
        if isinstance(value, list | tuple | set | frozenset):
            return [_clean(inner, withheld, depth + 1) for inner in value]
    if isinstance(value, BaseException):
        return _masked(f"{type(value).__name__}: {value}")
    return f"<{type(value).__name__}>"


def _masked(text: str) -> str:
    text = _JWT.sub("<token>", text)
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}… ({len(text)} characters)"
