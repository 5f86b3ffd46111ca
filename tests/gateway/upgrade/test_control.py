"""Finding running nodes by the names of their control sockets; asking them stands in tests/process."""

import os
import socket

from gateway.upgrade import control
from gateway.upgrade.control import address_of, listen_for_control, running_pids


def test_a_process_that_listens_for_upgrades_is_found_while_it_does():
    assert os.getpid() not in running_pids()
    with listen_for_control() as listening, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.connect(address_of(os.getpid()))
        with listening.accept()[0]:
            assert running_pids().count(os.getpid()) == 1, "the connection accepted from it has its name, too"
    assert os.getpid() not in running_pids()


def test_nodes_that_a_supervisor_upgrades_and_other_sockets_are_passed_over(monkeypatch, tmp_path):
    monkeypatch.setattr(control, "_PROC", tmp_path)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "unix").write_text(
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 11 @tidegate-node-50\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 12 @tidegate-node-51\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 13 @tidegate-node-9\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 14 @tidegate-node-8\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 15 @tidegate-node-of somebody else\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 16 /run/a place/socket\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 17\n"
    )
    for pid, parent in ((50, 1), (51, 50)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a ) name) S {parent} 50 50 0 -1")
    assert running_pids() == [9, 50], "9 is of another process namespace"
