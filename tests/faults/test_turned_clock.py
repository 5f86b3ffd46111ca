import subprocess
import sys
import time
from pathlib import Path

from bench.torture.turned_clock import turn

PROGRAM = """
import sys, time
from pathlib import Path
from bench.torture.turned_clock import install

install(Path(sys.argv[1]))
for line in sys.stdin:
    print(time.time(), time.time_ns(), time.monotonic(), flush=True)
"""


def test_a_clock_is_turned_while_its_process_runs(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    turn(clock, 0)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(clock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for turned_s in (0, 3_600, -3_600, 0):
            turn(clock, turned_s)
            before = time.time(), time.monotonic()
            print(file=process.stdin, flush=True)
            told_s, told_ns, monotonic_s = map(float, process.stdout.readline().split())
            after = time.time(), time.monotonic()
            assert before[0] + turned_s <= told_s <= after[0] + turned_s
            assert before[0] + turned_s - 1e-3 <= told_ns / 1e9 <= after[0] + turned_s + 1e-3
            assert before[1] <= monotonic_s <= after[1]
        process.stdin.close()
