"""What one small parcel costs Redis when many nodes keep it busy: written in pipelines, read in bulk."""

from typing import Any

import redis

from bench.backends import Backends
from bench.machine import process_cpu_ns
from gateway.cluster.redis_transport import FIELD, INBOX_PARCELS_MAX, READ_PARCELS_MAX

PARCELS = 30_000
"""Parcels written and read."""

PIPELINE = 50
"""Written in one go, as by a busy node for many others."""

PARCEL_BYTES = 300
"""Size of a parcel with one message of 100 characters in it."""

STREAM = "tidegate-bench-parcels"


def redis_cpu_us_per_parcel(backends: Backends) -> float:
    """Processor time of Redis for one parcel, its writing and its reading, microseconds."""
    client: Any = redis.Redis.from_url(backends.environment["TIDEGATE_REDIS_URL"])
    parcel, cursor, read = bytes(PARCEL_BYTES), b"0-0", 0
    with client:
        began_ns = process_cpu_ns(backends.redis_pid)
        while read < PARCELS:
            pipeline = client.pipeline(transaction=False)
            for _ in range(PIPELINE):
                pipeline.xadd(STREAM, {FIELD: parcel}, maxlen=INBOX_PARCELS_MAX, approximate=True)
            pipeline.execute()
            [[_, items]] = client.xread({STREAM: cursor}, count=READ_PARCELS_MAX)
            cursor, read = items[-1][0], read + len(items)
        used_ns = process_cpu_ns(backends.redis_pid) - began_ns
        client.delete(STREAM)
    return used_ns / 1e3 / read
