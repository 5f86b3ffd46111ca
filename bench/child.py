"""What the processes that a benchmark starts have in common: a process id, and an end with the block they serve."""

import subprocess
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class ChildProcess(ABC):
    """A process of the benchmark; a context manager that ends it."""

    _process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process id, for the meter."""
        return self._process.pid

    @abstractmethod
    def close(self) -> None:
        """End it at once."""
