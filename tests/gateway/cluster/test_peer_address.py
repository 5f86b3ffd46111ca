"""Where a node listens for other nodes, and what it tells them."""

import socket

import pytest

from gateway.cluster.peer_address import PeerPortUnusable, open_for_peers
from gateway.cluster.peers import split_address
from gateway.config import Settings


def test_it_is_reached_where_it_listens_on_a_port_of_the_system() -> None:
    listening, address = open_for_peers(Settings())
    with listening, socket.create_connection(split_address(address), timeout=10):
        assert listening.getsockname() == split_address(address)


def test_who_listens_everywhere_is_reached_by_the_hosts_name() -> None:
    listening, address = open_for_peers(Settings(host="0.0.0.0"))
    with listening:
        assert address == f"{socket.gethostname()}:{listening.getsockname()[1]}"


def test_an_advertised_host_goes_before_and_its_port_is_taken() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listening, address = open_for_peers(Settings(advertise=f"node7.internal:{port}"))
    with listening:
        assert listening.getsockname() == ("127.0.0.1", port)
        assert address == f"node7.internal:{port}"


def test_an_ipv6_address_is_told_in_brackets() -> None:
    listening, address = open_for_peers(Settings(advertise="[2001:db8::7]"))
    with listening:
        assert split_address(address) == ("2001:db8::7", listening.getsockname()[1])


def test_a_port_that_is_taken_is_refused_with_what_to_do() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            PeerPortUnusable, match=rf"127\.0\.0\.1, port {port}: Address already in use; .*--advertise"
        ):
            open_for_peers(Settings(advertise=f"node7:{port}"))
