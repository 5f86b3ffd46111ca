"""A load generator in a process of its own: built there from plain arguments, then called by name.

The child is pinned before it builds anything. Calls and answers are pickled, each behind its length, on the child's
standard input and output; what it prints goes to standard error. It ends with its parent, when its input does.
"""

import gc
import os
import pickle
import select
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from bench.child import ChildProcess
from bench.errors import BenchError

_LENGTH_BYTES = 4
CALL_TIMEOUT_S = 120.0
"""Seconds that any one call may take unless it says otherwise: no benchmark hangs."""


class LoadProcess(ChildProcess):
    """A generator object living in a pinned child process; a context manager that ends it.

    ``begin`` starts a call and ``finish`` waits for its answer, so that two generators can run at once.
    """

    def __init__(self, factory: str, *args: object, core: int, **kwargs: object) -> None:
        """Start a child on ``core`` and build ``factory`` ("package.module:Class") there with the arguments."""
        self._name = factory.partition(":")[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load.process", str(core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        try:
            self._deadline = time.monotonic() + CALL_TIMEOUT_S
            self._send((factory, args, kwargs))
            self.finish()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *args: object, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Call a method there and wait for what it returns. Raises BenchError with what it raised."""
        self.begin(method, *args, timeout_s=timeout_s)
        return self.finish()

    def begin(self, method: str, *args: object, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Start a call; one at a time."""
        self._deadline = time.monotonic() + timeout_s
        self._send((method, args))

    def finish(self) -> Any:
        """Wait for the answer of the call that was begun. Raises BenchError as ``call`` does."""
        failed, answer = self._receive()
        if failed:
            raise BenchError(f"the load generator {self._name} failed: {answer}")
        return answer

    @property
    def answered(self) -> bool:
        """Whether ``finish`` would not have to wait for the call that was begun."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def close(self) -> None:
        """End the child; all its connections close with it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was not yet written to a child that is gone

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        _write(self._process.stdin, message)

    def _receive(self) -> tuple[bool, Any]:
        assert self._process.stdout is not None
        left_s = max(0.0, self._deadline - time.monotonic())
        if not select.select([self._process.stdout], [], [], left_s)[0]:
            raise BenchError(f"the load generator {self._name} gave no answer in time")
        answer = _read(self._process.stdout)
        if answer is None:
            raise BenchError(f"the load generator {self._name} ended unexpectedly")
        failed, value = answer
        return bool(failed), value


def _write(pipe: BinaryIO | Any, message: object) -> None:
    data = pickle.dumps(message)
    pipe.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    pipe.flush()


def _read(pipe: BinaryIO | Any) -> Any:
    """One message, or None at the end of the pipe."""
    head = pipe.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    return pickle.loads(pipe.read(int.from_bytes(head, "big")))


def _serve(calls: BinaryIO | Any, answers: BinaryIO | Any) -> None:
    """Build the generator that the first message names, then answer calls until the input ends."""
    generator: Any = None
    while (message := _read(calls)) is not None:
        try:
            if generator is None:
                factory, args, kwargs = message
                module, _, name = factory.partition(":")
                generator = getattr(import_module(module), name)(*args, **kwargs)
                value = None
            else:
                method, args = message
                value = getattr(generator, method)(*args)
        except BenchError as error:
            _write(answers, (True, str(error)))
        except Exception:  # noqa: BLE001 -- whatever it is, the parent has to say it
            _write(answers, (True, traceback.format_exc()))
        else:
            _write(answers, (False, value))


def main() -> None:
    """Serve one parent on standard input and output."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    gc.disable()  # a generator makes no cycles, and its pauses would look like the server's
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
