"""The limit of sends without batches: the driver alone inserts the same rows, a request each.

Chains of callbacks, each with one insert under way: the quickest that the driver's own manual has to offer. The
keyspace has to have a node's tables. Prints one line: rows per second, and rows per second of processor time.
"""

import sys
import threading
import time
from collections.abc import Sequence

from cassandra.cluster import Session

from store.cassandra_session import Access, connect, open_cluster
from store.cassandra_statements import prepare

SETTLE_S = 1.0
"""Seconds of inserts before they count."""

STOP_TIMEOUT_S = 10.0
"""Seconds that the last inserts may take."""


class Chains:
    """``chains`` inserts under way at once, each followed by the next, of rows of ``partitions`` conversations."""

    def __init__(self, session: Session, row_bytes: int, partitions: int, chains: int) -> None:
        self.rows = 0
        self.failure = ""
        self._session = session
        self._bind = prepare(session)["entry"].bind
        self._payload = bytes(row_bytes)
        self._partitions = partitions
        self._left = self._chains = chains
        self._number = 0
        self._going_on = True
        self._ended = threading.Event()

    def begin(self) -> None:
        """Send the first insert of each chain."""
        for _ in range(self._chains):
            self._next()

    def end(self) -> None:
        """Let the last inserts be answered. Raises RuntimeError when one of all failed."""
        self._going_on = False
        if not self._ended.wait(STOP_TIMEOUT_S):
            self.failure = self.failure or f"inserts took longer than {STOP_TIMEOUT_S:g} s"
        if self.failure:
            raise RuntimeError(self.failure)

    def _next(self) -> None:
        number = self._number = self._number + 1
        seq, partition = divmod(number, self._partitions)
        values = (f"bare-{partition}", 0, seq + 1, 1, self._payload, time.time_ns() // 1000)
        future = self._session.execute_async(self._bind(values))
        future.add_callbacks(self._answered, self._failed)

    def _answered(self, _rows: object) -> None:
        self.rows += 1
        if self._going_on:
            self._next()
        else:
            self._chain_ended()

    def _failed(self, error: BaseException) -> None:
        self.failure = str(error) or type(error).__name__
        self._chain_ended()

    def _chain_ended(self) -> None:
        self._left -= 1
        if not self._left:
            self._ended.set()


def main(place: Sequence[str], row_bytes: int, partitions: int, chains: int, seconds: float) -> None:
    """Insert for so long; ``place`` is an address, a port and a keyspace."""
    address, port, keyspace = place
    access = Access((address,), int(port), keyspace)
    cluster = open_cluster(access)
    inserts = Chains(connect(cluster, access), row_bytes, partitions, chains)
    inserts.begin()
    time.sleep(SETTLE_S)
    rows, began_s, began_cpu_s = inserts.rows, time.perf_counter(), time.process_time()
    time.sleep(seconds)
    rows = inserts.rows - rows
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    inserts.end()
    cluster.shutdown()
    print(rows / wall_s, rows / cpu_s, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]), float(sys.argv[7]))
