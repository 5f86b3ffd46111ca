"""Lets a node write down under which epochs it speaks, so that a check can tell that no two owners ever spoke at once.

Clients never learn epochs: that one node at a time speaks for a conversation has to be recorded where it is decided.
"""

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from gateway.check.history import Record, encode
from gateway.owner.ports import Ownership

log = structlog.get_logger(__name__)


class HistoryUnwritable(Exception):
    """The setting ``history_file`` names a file that cannot be written; the message says why and what is allowed."""


def witnessed(ownership: Ownership, incarnation: str, history_file: str) -> Ownership:
    """``ownership``, with a witness when a file is named (``history_file`` is not empty).

    Raises:
        HistoryUnwritable: the file cannot be written.
    """
    if not history_file:
        return ownership
    try:
        return Witness(ownership, incarnation, Path(history_file))
    except OSError as error:
        raise HistoryUnwritable(
            f"history_file {history_file} cannot be written ({error.strerror}); "
            "allowed: a file in a directory that is there and that this user may write to, or empty (no history)"
        ) from None


class Witness:
    """Ownership that records each time it says that this node may speak. Implements ``gateway.owner.ports.Ownership``.

    Every record is in the file before the node speaks, so that a killed node leaves a whole history; nodes on one
    machine may share the file. That costs some 20 microseconds for each batch of a conversation: it is for trials.
    """

    def __init__(
        self, ownership: Ownership, incarnation: str, path: Path, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """Record what ``ownership`` allows to ``incarnation`` in the file at ``path``, behind what is there.

        Raises:
            OSError: the file cannot be written.
        """
        self._ownership = ownership
        self._incarnation = incarnation
        self._path = path
        self._clock_ns = clock_ns
        self._failed = False
        self._append(b"")

    def epoch(self, conversation_id: str) -> int | None:
        """See Ownership.epoch."""
        return self._ownership.epoch(conversation_id)

    def may_speak(self, conversation_id: str, epoch: int) -> bool:
        """See Ownership.may_speak."""
        asked_ns = self._clock_ns()  # before it is decided: a node that is paused afterwards breaks no promise
        if not self._ownership.may_speak(conversation_id, epoch):
            return False
        if not self._failed:
            self._record(asked_ns, conversation_id, epoch)
        return True

    def _record(self, asked_ns: int, conversation_id: str, epoch: int) -> None:
        """Write a record. The node goes on without a history when its disk is full; a check judges what there is."""
        record = Record(
            time=asked_ns, type="ok", op="speak", process=self._incarnation, conversation=conversation_id, epoch=epoch
        )
        try:
            self._append(encode(record))
        except OSError as error:
            self._failed = True
            log.error("history not written; nothing more is recorded", path=str(self._path), error=str(error))

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line)
