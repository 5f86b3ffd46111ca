"""The limit of durable sends: group commits of the same rows by SQLite alone, with the node's own schema and settings.

Only the log is written (no index, no members, no checkpoint): what no design could go below. Prints one line: rows
per second, and rows per second of processor time.
"""

import sys
import time
from pathlib import Path

from store.embedded_database import WRITER_CACHE_KIB, begin_log, connect
from store.migrations import embedded_migrations, migrate

ROWS_PER_STATEMENT = 64
"""Rows of one INSERT statement."""


def main(path: Path, row_bytes: int, batch_rows: int, seconds: float) -> None:
    """Commit groups of ``batch_rows`` rows with ``row_bytes`` of payload for so long."""
    path.touch()
    database = connect(path, cache_kib=WRITER_CACHE_KIB)
    begin_log(database, path)
    migrate(database, embedded_migrations(), str(path))
    payload = bytes(row_bytes)
    position, began_s, began_cpu_s = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began_s < seconds:
        database.execute("BEGIN IMMEDIATE")
        left = batch_rows
        while left:
            rows = min(left, ROWS_PER_STATEMENT)
            values: list[int | bytes] = []
            for _ in range(rows):
                position += 1
                values += (position, position % 500, position // 500, payload)
            database.execute(f"INSERT INTO entries VALUES {', '.join(['(?, ?, ?, ?)'] * rows)}", values)
            left -= rows
        database.execute("COMMIT")
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    database.close()
    print(position / wall_s, position / cpu_s, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
