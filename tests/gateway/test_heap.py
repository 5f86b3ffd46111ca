import subprocess
import sys

from gateway.edge.parking import READ_BYTES
from gateway.heap import MAPPED_BYTES

PROBE = """
import ctypes
from gateway.heap import MAPPED_BYTES, give_back_large_blocks

class Info(ctypes.Structure):  # struct mallinfo2, malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Info
if {told}:
    give_back_large_blocks()
large = [bytearray(4 << 20)]
large.clear()  # from here on, glibc left alone takes blocks of this size from the heap
before = mallinfo2().hblks
large = [bytearray(MAPPED_BYTES + 1) for _ in range(64)]
print(mallinfo2().hblks - before)
"""


def mapped_blocks(told: bool) -> int:
    """How many more blocks are mapped by themselves once 64 large ones are there, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROBE.format(told=told)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_large_blocks_leave_no_hole_in_the_heap() -> None:
    assert mapped_blocks(told=True) >= 56, "a few may fit into holes that start-up left, but not so many"
    assert mapped_blocks(told=False) == 0, "the C library does it by itself: is this still needed?"


def test_reading_a_connection_does_not_map_memory() -> None:
    assert READ_BYTES < MAPPED_BYTES - 100


def test_what_lives_for_a_commit_is_not_collected() -> None:
    probe = """
import gc
from gateway.heap import COLLECT_AFTER, collect_less_often

collect_less_often()
before = gc.get_stats()[0]["collections"]
sends = [[number] for number in range(COLLECT_AFTER[0] // 2)]
print(gc.get_stats()[0]["collections"] - before)
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0
