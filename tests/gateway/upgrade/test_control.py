"""Finding running nodes by the names of their control sockets; asking them stands in tests/process."""

import os
import socket

from gateway.upgrade.control import address_of, listen_for_control, running_pids


def test_a_process_that_listens_for_upgrades_is_found_while_it_does():
    assert os.getpid() not in running_pids()
    with listen_for_control() as listening, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.connect(address_of(os.getpid()))
        with listening.accept()[0]:
            assert running_pids().count(os.getpid()) == 1, "the connection accepted from it has its name, too"
    assert os.getpid() not in running_pids()


def test_names_that_are_no_processes_are_passed_over():
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind("\0tidegate-node-of-somebody else")
        other.listen()
        assert all(isinstance(pid, int) for pid in running_pids())
