"""What the kernel knows of this process, under the names that Prometheus clients agree on."""

import os
import resource
import time
from pathlib import Path
from typing import Final

from gateway.observe.registry import MetricRegistry

_STATM: Final = Path("/proc/self/statm")
_DESCRIPTORS: Final = Path("/proc/self/fd")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def add_process_metrics(registry: MetricRegistry) -> None:
    """Memory, CPU time and descriptors of this process, read when the metrics are."""
    started_s = time.time()
    registry.gauge(
        "resident_memory_bytes", "Resident memory.", lambda: _memory_pages()[1] * _PAGE_BYTES, prefix="process_"
    )
    registry.gauge(
        "virtual_memory_bytes", "Virtual memory.", lambda: _memory_pages()[0] * _PAGE_BYTES, prefix="process_"
    )
    registry.counter("cpu_seconds", "CPU time, user and system, of all threads.", time.process_time, prefix="process_")
    registry.gauge(
        "start_time_seconds", "When this node was made, seconds since the epoch.", lambda: started_s, prefix="process_"
    )
    registry.gauge("max_fds", "Descriptors this process may have open.", descriptors_max, prefix="process_")
    if open_descriptors():
        # Before Linux 6.2 the kernel does not tell, and listing a million descriptors would stall the loop: left out.
        registry.gauge("open_fds", "Descriptors this process has open.", open_descriptors, prefix="process_")


def open_descriptors() -> int:
    """Open descriptors, without listing them; 0 where the kernel does not tell (before Linux 6.2)."""
    return _DESCRIPTORS.stat().st_size


def descriptors_max() -> int:
    """The soft limit of open descriptors."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _memory_pages() -> tuple[int, int]:
    """Virtual and resident size, pages."""
    fields = _STATM.read_text().split()
    return int(fields[0]), int(fields[1])
