"""Starting the node under test: pinned, on a real disk, with the limits raised that would only limit the generator."""

import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.errors import BenchError
from bench.load.accounts import Door
from bench.machine import Cores
from bench.processes import NodeFailed, NodeProcess

IDLE_TIMEOUT_S = 3_600
"""Silence after which the node under test cuts a connection: longer than any benchmark, as its crowd sends nothing."""

METRICS_TIMEOUT_S = 10.0


@contextmanager
def running_node(
    cores: Cores, parent: Path | None, *options: str, environment: Mapping[str, str] | None = None, secret: str = ""
) -> Iterator[tuple[NodeProcess, Door]]:
    """A node in a data directory of its own under ``parent``, removed afterwards.

    Args:
        cores: it runs on the first of them.
        parent: of its directory; None for a place on a disk.
        options: more options of tidegate serve.
        environment: added to this process's.
        secret: of tokens, if the environment tells the node one; else it makes one itself.

    Raises:
        BenchError: it does not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="tidegate-bench-", dir=parent or disk_directory()))
    limits = (
        *("--commands-per-s-max", "0"),
        *("--conversation-sends-per-s-max", "0"),
        *("--idle-timeout-s", str(IDLE_TIMEOUT_S)),
        *("--handshakes-max", "256"),
        *("--log-level", "warning"),
    )
    try:
        data = directory / "data"
        with NodeProcess(data, *limits, *options, cpus=[cores.server], environment=environment) as node:
            yield node, Door(node.host, node.port, node.pid, secret or node.secret)
    except NodeFailed as error:
        raise BenchError(str(error)) from None
    finally:
        shutil.rmtree(directory)


def disk_directory() -> Path:
    """A place for data on a disk: where temporary files go, or here, if that is in memory. Raises BenchError."""
    for place in (Path(tempfile.gettempdir()), Path.cwd()):
        if _file_system(place) not in {"tmpfs", "ramfs"}:
            return place
    raise BenchError("no place on a disk: temporary files and this directory are in memory; use --data-parent DIR")


def _file_system(place: Path) -> str:
    """Type of the file system that holds ``place``."""
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _device, mount, found, *_ = line.split()
        if place.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def read_metrics(node: NodeProcess) -> dict[str, float]:
    """All samples of the node's /metrics, by name with labels as printed."""
    return metrics_at(node.url)


def metrics_at(url: str) -> dict[str, float]:
    """All samples of the /metrics of the node that answers there, by name with labels as printed."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=METRICS_TIMEOUT_S) as answer:
        text = answer.read().decode()
    samples = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
    return samples
