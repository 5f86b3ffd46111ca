"""From a node that stands still to one that has not begun: everything a connection has goes over."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass

import pytest
import trio

from gateway.broker import channel_id_of
from gateway.config import Settings
from gateway.edge.connection import CLOSING, JSON, QUEUED, Devices, plain_socket
from gateway.edge.keepalive import Keepalive
from gateway.edge.presence import Presences
from gateway.upgrade.messages import CONNECTIONS_PER_CHUNK, Begin
from gateway.upgrade.restore import Restorer
from gateway.upgrade.snapshot import chunks_of, movable_connections
from protocol.errors import CloseCode
from protocol.websocket import encode_masked_frame
from tests.fakes.memory_store import MemoryStore
from tests.gateway.edge.conftest import Edge


@dataclass
class Half:
    """As much of a node as an upgrade looks at."""

    edge: Edge
    keepalive: Keepalive
    presences: Presences

    def __getattr__(self, name: str) -> object:
        return getattr(self.edge, name)


def half() -> Half:
    settings, edge = Settings(), Edge()
    keepalive = Keepalive(settings, edge.table, edge.writer)
    return Half(edge, keepalive, Presences(settings, MemoryStore(), edge.hub))


def move(old: Half, new: Half, ago_s: float = 0.0) -> None:
    """Hand over as two processes do, with descriptors of their own."""
    connections = movable_connections(old)
    now_s = trio.current_time()
    # A clock that began elsewhere, and a hand-over that took a while.
    left_ago_s, followed = old.presences.left_ago_s(now_s), old.hub.followers.all()
    begin = Begin(0, len(connections), now_s + 5000, time.monotonic() - ago_s, left_ago_s, b"", followed)
    restorer = Restorer(new, begin)
    for chunk, descriptors in chunks_of(old, connections):
        assert len(descriptors) <= CONNECTIONS_PER_CHUNK
        restorer.take(chunk, [os.dup(fd) for fd in descriptors])
    restorer.finish()
    assert restorer.count == len(connections) == new.table.count


@pytest.fixture
def halves():
    made = half(), half()
    yield made
    for each in made:
        each.edge.close()


async def test_an_idle_connection_keeps_its_cells_by_the_new_clock(halves):
    old, new = halves
    peer = old.edge.connect("alice", device=2**63 + 1, ends_s=trio.current_time() + 6000)
    old.table.heard_s[peer.connection.fd] = int(trio.current_time()) + 5000 - 20
    old.table.allowance_s[peer.connection.fd] = trio.current_time() + 5001
    move(old, new)
    (moved,) = new.hub.connections_of("alice")
    now_s = trio.current_time()
    assert new.table.by_fd[moved.fd] is moved
    assert moved.flags == 0
    assert new.table.device_key[moved.fd] == 2**63 + 1
    assert abs(new.table.heard_s[moved.fd] - (now_s - 20)) < 3
    assert abs(new.table.ends_s[moved.fd] - (now_s + 1000)) < 3
    assert abs(new.table.allowance_s[moved.fd] - (now_s + 1)) < 3


async def test_a_token_without_end_stays_so_and_no_time_falls_below_zero(halves):
    old, new = halves
    peer = old.edge.connect("alice", ends_s=2.0**40)
    old.table.heard_s[peer.connection.fd] = 0
    move(old, new)
    (moved,) = new.hub.connections_of("alice")
    assert new.table.ends_s[moved.fd] == 2**32 - 1
    assert new.table.heard_s[moved.fd] == 0


async def test_devices_of_one_user_keep_their_order_over_many_chunks(halves):
    old, new = halves
    for number in range(CONNECTIONS_PER_CHUNK + 20):
        old.edge.connect(f"u{number}")
    for device in (7, 8, 9):
        old.edge.connect("alice", device=device)
    move(old, new)
    keys = [new.table.device_key[each.fd] for each in new.hub.connections_of("alice")]
    assert keys == [7, 8, 9]
    assert isinstance(new.hub.by_user["alice"], Devices)
    assert len(new.hub.by_user) == CONNECTIONS_PER_CHUNK + 21


async def test_nobody_comes_or_goes_by_it(halves):
    old, new = halves
    happened = []
    old.edge.connect("alice")
    for each in halves:
        each.hub.on_arrival = each.hub.on_departure = happened.append
    move(old, new)
    assert not happened


async def test_a_frame_cut_in_two_is_read_to_its_end_by_the_successor(halves):
    old, new = halves
    peer = old.edge.connect("alice", json=True)
    frame = encode_masked_frame(1, "grüße".encode(), b"\x01\x02\x03\x04")
    peer.sock.send(frame[:9])  # in the midst of a character
    await old.edge.settle()
    move(old, new)
    peer.sock.send(frame[9:])
    await new.edge.settle()
    assert [payload for _, payload in new.edge.handled] == ["grüße".encode()]
    assert new.edge.handled[0][0].flags == JSON
    assert not old.edge.handled


async def test_what_is_not_read_yet_is_read_by_the_successor(halves):
    old, new = halves
    peer = old.edge.connect("alice")
    peer.send(b"unread")
    move(old, new)
    await new.edge.settle()
    assert [payload for _, payload in new.edge.handled] == [b"unread"]


async def test_a_send_queue_goes_on_where_it_was_and_stays_a_whole_stream(halves):
    old, new = halves
    peer = old.edge.connect("alice", buffer=4096)
    sent = bytearray()
    number = 0
    while not peer.connection.flags & QUEUED or number % 5:
        data = number.to_bytes(4, "big") * 100
        old.writer.write(peer.connection, data)
        sent += data
        number += 1
    move(old, new)
    assert new.writer.bytes_queued == old.writer.bytes_queued > 0
    while len(peer.read()) < len(sent):
        await new.edge.settle()
    assert bytes(peer.received) == bytes(sent)
    assert not new.writer.bytes_queued


async def test_a_closing_connection_is_in_no_hub_and_keeps_its_deadline(halves):
    old, new = halves
    peer = old.edge.connect("alice")
    old.table.now = trio.current_time() + 5000
    old.writer.close(peer.connection, CloseCode.NORMAL)
    move(old, new)
    assert "alice" not in new.hub.by_user
    ((moved, deadline_s),) = new.writer.closing().items()
    assert moved.flags & CLOSING
    assert 0 < deadline_s - trio.current_time() < 10
    assert not new.writer.sweep(deadline_s + 1)
    assert new.table.count == 0


async def test_a_closed_connection_that_the_hub_did_not_forget_is_left_behind(halves):
    old, new = halves
    old.edge.connect("alice")
    (connection,) = old.hub.connections_of("alice")
    old.writer.on_gone = lambda _connection: None
    old.writer.abort(connection)
    old.edge.connect("bob")
    move(old, new)
    assert list(new.hub.by_user) == ["bob"]


async def test_watch_lists_notices_and_those_who_just_left_go_over(halves):
    old, new = halves
    watcher, noticed = old.edge.connect("alice"), old.edge.connect("carol")
    old.presences.restore([(watcher.connection, ("bob", "dave"))], {"bob": 4.0})
    old.keepalive.restore([noticed.connection], 0.0)
    move(old, new)
    (moved,) = new.hub.connections_of("alice")
    assert new.presences.watched_by(moved) == ("bob", "dave")
    assert new.presences.watched == 2
    assert 3.9 < new.presences.left_ago_s(trio.current_time())["bob"] < 10
    assert list(new.keepalive.noticed_connections) == list(new.hub.connections_of("carol"))


async def test_a_socket_is_shared_until_one_of_both_ends(halves):
    old, new = halves
    peer = old.edge.connect("alice")
    move(old, new)
    old.writer.abort(peer.connection)  # as the end of that process does
    assert not peer.ended
    (moved,) = new.hub.connections_of("alice")
    new.writer.write(moved, b"\x82\x01x")
    assert peer.read() == b"\x82\x01x"


def test_a_plain_socket_made_of_a_descriptor_is_what_parking_keeps():
    ours, theirs = socket.socketpair()
    with theirs:
        made = plain_socket(ours)
        assert type(made).__module__ == "_socket"
        made.close()


async def test_what_happens_in_channels_goes_on_being_pushed(halves):
    old, new = halves
    channel = channel_id_of("n" * 24)
    for user in ("alice", "bob"):
        old.edge.connect(user)
        with old.hub.followers.comparing(user) as comparison:
            await comparison.take({channel: 1} if user == "alice" else {}, whole=True)
    move(old, new)
    assert new.hub.followers.here(channel) == ("alice",)
