"""What the machine is, what a process takes of it, and how much everybody else took meanwhile.

Processor time is read from the kernel's clock of a whole process (nanoseconds, ended threads included), because
``/proc/PID/stat`` counts in steps of 10 ms.
"""

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from bench.errors import BenchError

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Cores(Struct, frozen=True):
    """The processor the servers run on, and the one the load generators run on."""

    server: int
    load: int


class Busy(Struct, frozen=True):
    """How busy a window of ``wall_s`` seconds was: shares of one core, 1.0 being all of it.

    ``others`` is what processes that are not part of the benchmark took of the two cores (in shares of one core):
    a figure measured beside others is worth little. ``stolen`` is what the host of a virtual machine took.
    ``server_kernel`` is the part of ``server`` that the kernel took (counted in steps of 10 ms). ``backend`` is what
    the servers behind a cluster's nodes took: Cassandra and Redis.
    """

    wall_s: float
    server: float
    load: float
    others: float
    stolen: float
    server_kernel: float
    backend: float = 0.0


def together(windows: Sequence[Busy]) -> Busy:
    """Several windows as one: their whole length, and the shares averaged over it."""
    wall_s = sum(window.wall_s for window in windows)

    def share(name: str) -> float:
        total: float = sum(getattr(window, name) * window.wall_s for window in windows)
        return total / wall_s

    names = ("server", "load", "others", "stolen", "server_kernel", "backend")
    return Busy(wall_s, *(share(name) for name in names))


def choose_cores() -> Cores:
    """Two cores this process may use: the first for servers, the second for load. Raises BenchError without two."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise BenchError("this process may use one processor core; benchmarks need two: one for servers, one for load")
    return Cores(allowed[0], allowed[1])


def process_cpu_ns(pid: int) -> int:
    """Processor time of all threads of ``pid`` so far, nanoseconds.

    The id of another process's clock is its inverted pid, shifted over the clock's kind (see clock_getcpuclockid(3)).
    """
    try:
        return time.clock_gettime_ns(~pid << 3 | 2)
    except OSError as error:
        raise BenchError(f"the processor time of process {pid} cannot be read: {error}; has it ended?") from None


def resident_bytes(pid: int) -> int:
    """Resident anonymous memory of a process, bytes: RssAnon of /proc/PID/status, which leaves mapped files out."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"the kernel does not tell RssAnon of process {pid}")


def descriptor_limit() -> int:
    """How many descriptors a process started from here may have."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


class Meter:
    """Measures one window: construct it where the window begins, call ``stop`` where it ends."""

    def __init__(
        self, server_pid: int | Sequence[int], *load_pids: int, cores: Cores, backends: Sequence[int] = ()
    ) -> None:
        """Begin the window.

        Args:
            server_pid: one or several.
            load_pids: all processes that make the load.
            cores: where they run.
            backends: the servers behind the servers.
        """
        self._servers = (server_pid,) if isinstance(server_pid, int) else tuple(server_pid)
        self._loads = len(load_pids)
        self._pids = (*self._servers, *load_pids, *backends)
        self._cores = cores
        self._kernel_ticks = sum(map(_kernel_ticks, self._servers))
        self._ticks = _core_ticks(cores)
        self._cpu_ns = [process_cpu_ns(pid) for pid in self._pids]
        self._began_ns = time.perf_counter_ns()

    def stop(self) -> Busy:
        """End the window."""
        wall_ns = max(1, time.perf_counter_ns() - self._began_ns)
        used_ns = [process_cpu_ns(pid) - began for pid, began in zip(self._pids, self._cpu_ns, strict=True)]
        servers, loads = len(self._servers), len(self._servers) + self._loads
        server_ns, load_ns, backend_ns = sum(used_ns[:servers]), sum(used_ns[servers:loads]), sum(used_ns[loads:])
        busy, stolen = (now - began for now, began in zip(_core_ticks(self._cores), self._ticks, strict=True))
        kernel_ticks = sum(map(_kernel_ticks, self._servers)) - self._kernel_ticks
        others_s = max(0.0, busy / _TICKS_PER_S - sum(used_ns) / 1e9)
        return Busy(
            wall_s=wall_ns / 1e9,
            server=server_ns / wall_ns,
            load=load_ns / wall_ns,
            others=others_s * 1e9 / wall_ns,
            stolen=stolen / _TICKS_PER_S * 1e9 / wall_ns,
            server_kernel=kernel_ticks / _TICKS_PER_S * 1e9 / wall_ns,
            backend=backend_ns / wall_ns,
        )


def _core_ticks(cores: Cores) -> tuple[int, int]:
    """Clock ticks that the two cores were busy, and that were stolen from them, since boot."""
    busy = stolen = 0
    names = {f"cpu{cores.server}", f"cpu{cores.load}"}
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
    return busy, stolen


def _kernel_ticks(pid: int) -> int:
    """Clock ticks that the kernel has worked for a process: stime of /proc/PID/stat."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return int(stat.rpartition(")")[2].split()[12])


def describe() -> dict[str, object]:
    """The facts of the machine that a reader of a figure wants to know."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "descriptors_per_process": descriptor_limit(),
    }
