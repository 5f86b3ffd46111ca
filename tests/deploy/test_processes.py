"""Server programs end with whoever started them, however that ends."""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

DEADLINE_S = 60

STARTER = """
import sys
from pathlib import Path

from deploy.processes import ServerProcess

server = ServerProcess("server", ["sh", "-c", "sleep 1000 & echo $!; wait"], Path(sys.argv[1]))
server.launch()
server.wait_until(lambda: server.log_path.read_bytes().endswith(b"\\n"), 30, "process")
print(server.pid, server.log_path.read_text().strip(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_and_its_processes_end_with_a_starter_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path / "server.log")]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        assert starter.stderr is not None
        pids = [int(word) for word in starter.stdout.readline().split()]
        assert len(pids) == 2, starter.stderr.read()
        ended = [os.pidfd_open(pid) for pid in pids]
        try:
            starter.send_signal(number)
            starter.wait(DEADLINE_S)
            # The guard holds this pipe until it is done, and has nothing to complain of.
            assert starter.stderr.read() == b""
            assert all(select.select([one], [], [], DEADLINE_S)[0] for one in ended)
        finally:
            for one in ended:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(one, signal.SIGKILL)
                os.close(one)
