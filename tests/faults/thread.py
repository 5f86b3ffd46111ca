"""Fault proxies in a thread of their own, for tests that block."""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import trio

from bench.torture.proxy import FaultProxy

T = TypeVar("T")


class ProxyThread:
    """Runs proxies as long as it is open; raises what they raised, a port in use for instance::

        with ProxyThread([proxy]) as thread:
            thread.call(faults.stall)

    A Faults belongs to the thread's trio run: change it by ``call`` only.
    """

    def __init__(self, proxies: Sequence[FaultProxy]) -> None:
        """Describe the thread; nothing listens yet."""
        self._proxies = proxies
        self._token_told: queue.SimpleQueue[trio.lowlevel.TrioToken | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._scope = trio.CancelScope()
        self._thread = threading.Thread(target=self._run, name="fault proxies")

    def __enter__(self) -> Self:
        self._thread.start()
        token = self._token_told.get()
        if token is None:
            self._thread.join()
            assert self._failure is not None
            raise self._failure
        self._token = token
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # it failed, which is told below
            self.call(self._scope.cancel)
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def call(self, change: Callable[..., T], *arguments: object) -> T:
        """Call a plain function, such as a method of a Faults, in the thread's trio run; returns what it returns."""
        return trio.from_thread.run_sync(change, *arguments, trio_token=self._token)

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: BLE001  # raised again in the test's thread
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]  # what a proxy raised, without the nurseries around it
            self._failure = error
            self._token_told.put(None)

    async def _serve(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                for proxy in self._proxies:
                    await nursery.start(proxy.run)
                self._token_told.put(trio.lowlevel.current_trio_token())
