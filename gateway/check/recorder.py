"""Writes a history while it happens."""

import hashlib
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gateway.check.history import Record, encode


def payload_of(body: str, metadata: dict[str, str] | None = None) -> str:
    """A digest of a message's content: 16 hexadecimal digits, the same on every machine."""
    digest = hashlib.sha256()
    for part in (body, *(text for pair in sorted((metadata or {}).items()) for text in pair)):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


class Recorder:
    """Appends records to a file, from any thread. ``call`` numbers are handed out here."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._lock = threading.Lock()
        self._calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def next_call(self) -> int:
        """A number for a new call."""
        with self._lock:
            self._calls += 1
            return self._calls

    def record(self, type: str, op: str, process: str, **fields: Any) -> None:
        """Write one record, stamped with the monotonic clock; ``fields`` are those of ``history.Record``."""
        with self._lock:
            record = Record(time=time.monotonic_ns(), type=type, op=op, process=process, **fields)  # type: ignore[arg-type]
            self._file.write(encode(record))

    def close(self) -> None:
        """Write out what is left and close the file."""
        with self._lock:
            self._file.close()
