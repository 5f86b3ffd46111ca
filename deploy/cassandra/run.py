"""Runs one Cassandra node on this machine until it is interrupted: ``python -m deploy.cassandra.run``."""

import argparse
import signal
import sys
from pathlib import Path

from deploy.cassandra.launcher import PORT, CassandraCluster, CassandraOptions
from deploy.processes import ServerFailed


def main(arguments: list[str] | None = None) -> int:
    """Start one node, say where, and wait for SIGINT or SIGTERM; the data stays. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Run one Cassandra node for trials; it keeps its data.")
    parser.add_argument("--directory", type=Path, default=Path("data/cassandra"), help="its data (%(default)s)")
    parser.add_argument("--network", default="127.0.0.", help="its address without the last number (%(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="where it speaks CQL (%(default)s)")
    options = parser.parse_args(arguments)
    waited_for = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    try:
        cluster = CassandraCluster(options.directory, CassandraOptions(port=options.port), options.network)
        cluster.start()
    except ServerFailed as error:
        print(f"tidegate: Cassandra does not run: {error}", file=sys.stderr)
        return 1
    print(f"Cassandra listening on {cluster.addresses[0]}:{cluster.port}", flush=True)
    signal.sigwait(waited_for)
    cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
