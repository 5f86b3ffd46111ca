"""The port that several nodes share, and how a node process is started."""

import errno
import signal
import socket
import sys

import pytest
import trio

from gateway.config import Settings
from gateway.edge.listener import listen
from gateway.process_launch import _command, held_port, launch


def close(sockets) -> None:
    for sock in sockets:
        sock.close()


def test_a_chosen_port_is_held_and_shared_with_nodes_only():
    with held_port("127.0.0.1", 0) as (address, port, _):
        assert address == "127.0.0.1"
        nodes = listen(address, port, shared=True) + listen(address, port, shared=True)
        with pytest.raises(OSError, match="in use") as caught:
            listen(address, port)
        assert caught.value.errno == errno.EADDRINUSE
        close(nodes)


def test_connections_come_to_nodes_and_not_to_who_holds_the_port():
    with held_port("127.0.0.1", 0) as (address, port, _):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port))
        nodes = listen(address, port, shared=True)
        for _ in range(20):
            socket.create_connection((address, port)).close()
        close(nodes)


def test_two_supervisors_do_not_share_a_port_unawares():
    with held_port("127.0.0.1", 0) as (address, port, _):
        nodes = listen(address, port, shared=True)
        with pytest.raises(OSError, match="in use"), held_port(address, port):
            pass
        close(nodes)


def test_the_port_is_free_afterwards():
    with held_port("127.0.0.1", 0) as (address, port, _):
        pass
    with held_port(address, port) as held:
        assert held[:2] == (address, port)


def test_a_host_with_several_addresses_has_one_port():
    addresses = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with held_port("localhost", 0) as (_, port, _sockets):
        for address in addresses:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port))


def test_an_unknown_host():
    with pytest.raises(socket.gaierror), held_port("no such host.invalid", 0):
        pass


def test_modules_are_not_looked_for_in_a_strange_working_directory(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path[1:]])
    assert "-P" in _command("n", 5)


async def test_a_process_is_started_tells_how_it_failed_and_leaves_nothing(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    child = await launch(Settings(port=0, node_name="n-1", data_dir=tmp_path / "file" / "data"))
    with trio.fail_after(120):
        code = await child.run()
    assert code == 1
    assert not child.ready.is_set()
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tidegate: ")]
    assert len(said) == 1
    assert str(tmp_path / "file") in said[0]


async def test_a_process_that_is_killed_has_the_code_that_shells_give_it(tmp_path):
    child = await launch(Settings(port=0, node_name="n-1", data_dir=tmp_path / "data"))
    child.kill()
    with trio.fail_after(120):
        assert await child.run() == 128 + signal.SIGKILL
