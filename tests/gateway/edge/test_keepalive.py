"""Silent connections and tokens that run out."""

import pytest

from gateway.config import Settings
from gateway.edge.connection import CLOSING
from gateway.edge.keepalive import Keepalive
from protocol.errors import CloseCode
from protocol.frames import TokenExpiring


@pytest.fixture
def keepalive(edge):
    return Keepalive(Settings(idle_timeout_s=90), edge.table, edge.writer, edge.hub)


def look_at_all(keepalive, edge, now):
    edge.table.now = now
    for _ in range(len(edge.table.by_fd)):
        keepalive.look(now, 1)


def test_silence_is_cut_after_the_idle_timeout(edge, keepalive):
    edge.table.now = 1000.0
    silent, heard = edge.connect("silent", ends_s=1e9), edge.connect("heard", ends_s=1e9)
    look_at_all(keepalive, edge, 1090.0)
    assert not silent.connection.flags
    edge.table.heard_s[heard.connection.fd] = 1050
    look_at_all(keepalive, edge, 1091.0)
    assert silent.close_code() == CloseCode.HEARTBEAT_TIMEOUT
    assert not heard.connection.flags & CLOSING


def test_a_token_is_told_once_before_it_runs_out_and_closed_after(edge, keepalive):
    edge.table.now = 1000.0
    peer = edge.connect("a", ends_s=2030.0)  # leeway included
    for now in (1900.0, 1934.0):
        edge.table.heard_s[peer.connection.fd] = int(now)
        look_at_all(keepalive, edge, now)
    assert peer.frames() == []
    edge.table.heard_s[peer.connection.fd] = 2030
    for now in (1940.0, 1945.0):
        look_at_all(keepalive, edge, now)
    assert peer.frames() == [TokenExpiring(60)]
    look_at_all(keepalive, edge, 2029.0)
    assert not peer.connection.flags & CLOSING
    look_at_all(keepalive, edge, 2030.0)
    assert peer.close_code() == CloseCode.TOKEN_EXPIRED


def test_a_fresh_token_is_told_anew(edge, keepalive):
    edge.table.now = 1000.0
    peer = edge.connect("a", ends_s=1050.0)
    look_at_all(keepalive, edge, 1000.0)
    edge.table.ends_s[peer.connection.fd] = 1080
    keepalive.forget(peer.connection)
    look_at_all(keepalive, edge, 1010.0)
    assert peer.frames() == [TokenExpiring(20), TokenExpiring(40)]


def test_the_look_around_covers_the_whole_table_in_parts(edge, keepalive):
    edge.table.now = 1000.0
    peers = [edge.connect(f"u{n}") for n in range(20)]
    for _ in range(len(edge.table.by_fd) // 7 + 1):
        keepalive.look(1200.0, 7)
    assert all(peer.connection.flags & CLOSING for peer in peers)
