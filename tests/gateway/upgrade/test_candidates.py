"""Processes that are to take over: each can be ended for certain, whoever has started it."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from gateway.upgrade import candidates
from gateway.upgrade.candidates import Sibling, start_candidate
from gateway.upgrade.channel import Channel, HandOverFailed

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def sibling_of(process: "subprocess.Popen[bytes]") -> Sibling:
    ours, theirs = socket.socketpair()
    theirs.close()
    return Sibling(process.pid, os.pidfd_open(process.pid), Channel(ours))


def test_one_that_was_started_here_is_dead_when_it_is_ended():
    candidate = start_candidate(SLEEPER)
    candidate.end()
    assert candidate.how_ended() == f" with code -{signal.SIGKILL.value}"
    candidate.close()
    assert candidate.channel.closed


def test_one_that_was_started_here_finds_its_end_of_the_channel():
    program = (
        "import os, socket; socket.socket(fileno=int(os.environ['TIDEGATE_PREDECESSOR'])).send(b'here'); os._exit(3)"
    )
    candidate = start_candidate([sys.executable, "-c", program])
    candidate.channel.sock.settimeout(30)
    assert candidate.channel.sock.recv(9) == b"here"
    assert candidate.how_ended() == " with code 3"
    candidate.close()


def test_what_cannot_be_started():
    with pytest.raises(HandOverFailed, match="/no/such/program cannot be started: No such file"):
        start_candidate(["/no/such/program"])


def test_one_that_another_process_has_started_is_dead_when_it_is_ended():
    with subprocess.Popen(SLEEPER) as process:
        sibling = sibling_of(process)
        sibling.end()
        assert process.wait(0.0) == -signal.SIGKILL
        sibling.end()  # it has ended, and whoever started it knows
        assert sibling.how_ended() == ""
        sibling.close()
        sibling.close()
        assert sibling.channel.closed


def test_one_that_does_not_die_is_no_success(monkeypatch):
    monkeypatch.setattr(candidates, "KILL_TIMEOUT_S", 0.01)
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *_arguments: None)
    with subprocess.Popen(SLEEPER) as process:
        sibling = sibling_of(process)
        with pytest.raises(TimeoutError, match=f"process {process.pid} does not end"):
            sibling.end()
        sibling.close()
        process.kill()
