"""Generators in processes of their own: called, failing, and ending with their parent."""

import os

import psutil
import pytest

from bench.errors import BenchError, PeerMissing
from bench.load.process import LoadProcess
from bench.machine import Meter, choose_cores, process_cpu_ns, resident_bytes
from bench.peers.process import PeerProcess


@pytest.fixture
def core() -> int:
    return min(os.sched_getaffinity(0))


def test_a_generator_is_built_and_called_in_another_process(core: int) -> None:
    with LoadProcess("collections:Counter", "aab", core=core) as counter:
        assert counter.call("most_common", 1) == [("a", 2)]
        counter.begin("total")
        assert counter.finish() == 3
        process = psutil.Process(counter.pid)
        assert process.cpu_affinity() == [core]
    assert not process.is_running()


def test_what_a_generator_raises_is_told(core: int) -> None:
    with LoadProcess("collections:Counter", core=core) as counter:
        with pytest.raises(BenchError, match=r"(?s)Counter failed: .*AttributeError"):
            counter.call("no_such_method")
        assert counter.call("total") == 0


def test_a_generator_that_cannot_be_built_is_told(core: int) -> None:
    with pytest.raises(BenchError, match="ModuleNotFoundError"):
        LoadProcess("bench.load.none_such:Load", core=core)


def test_a_generator_that_dies_is_told(core: int) -> None:
    with LoadProcess("collections:Counter", core=core) as counter:
        psutil.Process(counter.pid).kill()
        with pytest.raises((BenchError, BrokenPipeError)):
            counter.call("total")


def test_a_call_that_takes_too_long_is_given_up(core: int) -> None:
    with (
        LoadProcess("threading:Event", core=core) as event,
        pytest.raises(BenchError, match="Event gave no answer in time"),
    ):
        event.call("wait", timeout_s=0.01)


def test_a_peer_that_is_not_installed_is_missing(core: int) -> None:
    with pytest.raises(PeerMissing, match="not installed: none_such"):
        PeerProcess("websockets_uvloop", "echo", core=core, needs=("websockets", "none_such"))


def test_a_peer_that_does_not_start_is_told(core: int) -> None:
    with pytest.raises(BenchError, match="did not start"):
        PeerProcess("none_such", core=core)


def test_processor_time_and_memory_are_those_of_the_process() -> None:
    before = process_cpu_ns(os.getpid())
    while process_cpu_ns(os.getpid()) - before < 2_000_000:
        pass
    assert resident_bytes(os.getpid()) > 1_000_000
    with pytest.raises(BenchError, match="cannot be read"):
        process_cpu_ns(2**22 + 1)


def test_a_meter_tells_server_and_load_apart() -> None:
    cores = choose_cores()
    meter = Meter(os.getpid(), cores=cores)
    before = process_cpu_ns(os.getpid())
    while process_cpu_ns(os.getpid()) - before < 2_000_000:
        pass
    busy = meter.stop()
    assert busy.server * busy.wall_s >= 0.002
    assert busy.load == 0
