"""Silent connections and tokens that run out."""

import pytest
import trio

from gateway.config import Settings
from gateway.edge.connection import CLOSING, QUEUED
from gateway.edge.keepalive import ACTIONS_PER_SLICE, REVOLUTION_TICKS, Keepalive
from gateway.edge.writer import CLOSE_LINGER_S, ENDINGS_PER_SWEEP
from protocol.codec import encode_msgpack
from protocol.errors import CloseCode
from protocol.frames import Ping, TokenExpiring


@pytest.fixture
def keepalive(edge):
    return Keepalive(Settings(idle_timeout_s=90), edge.table, edge.writer)


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


def test_the_notice_of_a_token_is_not_lost_to_a_full_socket(edge, keepalive):
    edge.table.now = now = 1000.0
    peer = edge.connect("a", ends_s=now + 80, buffer=4608)
    while not peer.connection.flags & QUEUED:
        edge.writer.write(peer.connection, b"\x82\x03abc" * 100)
    keepalive.look(now, 1000)
    while peer.connection.flags & QUEUED:
        peer.read()
        edge.writer.flush(peer.connection)
    opcode, payload = peer.ws_frames()[-1]
    assert (opcode, payload) == (2, encode_msgpack(TokenExpiring(50)))


def test_a_notice_that_finds_a_broken_socket_leaves_nothing_behind(edge, keepalive):
    edge.table.now = now = 1000.0
    gone, edge.writer.on_gone = edge.gone, lambda connection: (gone(connection), keepalive.forget(connection))
    peer = edge.connect("a", ends_s=now + 80)
    peer.sock.close()
    keepalive.look(now, 1000)
    assert peer.connection.fd == -1
    assert keepalive.noticed == 0


# --- Crowds ---------------------------------------------------------------------------------------------------------


def test_many_silent_ones_are_closed_in_slices(edge, keepalive):
    edge.table.now = 1000.0
    peers = [edge.connect(f"u{n}") for n in range(2 * ACTIONS_PER_SLICE + 50)]
    closed, edge.table.now = [], 1091.0
    for _ in range(3):
        keepalive.look(1091.0, len(edge.table.by_fd))
        closed.append(sum(bool(peer.connection.flags & CLOSING) for peer in peers))
    assert closed == [ACTIONS_PER_SLICE, 2 * ACTIONS_PER_SLICE, len(peers)]


def test_many_tokens_that_run_out_together_are_told_in_slices(edge, keepalive):
    edge.table.now = 1000.0
    peers = [edge.connect(f"u{n}", ends_s=1050.0) for n in range(ACTIONS_PER_SLICE + 50)]
    told = []
    for _ in range(2):
        keepalive.look(1000.0, len(edge.table.by_fd))
        told.append(sum(bool(peer.frames()) for peer in peers))
    assert told == [ACTIONS_PER_SLICE, len(peers)]


def test_those_who_are_closing_take_nobodys_turn(edge, keepalive):
    edge.table.now = 1000.0
    leaving = [edge.connect(f"leaving-{n}") for n in range(ACTIONS_PER_SLICE)]
    silent = edge.connect("silent")
    for peer in leaving:
        edge.writer.close(peer.connection, CloseCode.NORMAL)
    keepalive.look(1091.0, len(edge.table.by_fd))
    assert silent.close_code() == CloseCode.HEARTBEAT_TIMEOUT


def test_nothing_is_noted_of_the_token_of_who_is_closing(edge, keepalive):
    edge.table.now = 1000.0
    peer = edge.connect("a", ends_s=1050.0)
    edge.writer.close(peer.connection, CloseCode.NORMAL)
    keepalive.look(1000.0, len(edge.table.by_fd))
    assert keepalive.noticed == 0


async def test_all_of_a_crowd_that_is_overdue_is_cut_with_one_tick(edge, keepalive, nursery, mock_clock):
    nursery.start_soon(keepalive.run)
    for n in range(2 * ENDINGS_PER_SWEEP + 5):
        edge.writer.close(edge.connect(f"u{n}").connection, CloseCode.NORMAL)
    await tick(mock_clock, int(CLOSE_LINGER_S))
    assert edge.table.count == 0


async def test_a_revolution_gets_through_a_crowd(edge, keepalive, nursery, mock_clock):
    nursery.start_soon(keepalive.run)
    peers = [edge.connect(f"u{n}") for n in range((ACTIONS_PER_SLICE + 50) * REVOLUTION_TICKS)]
    await tick(mock_clock, 90)
    assert not any(peer.connection.flags & CLOSING for peer in peers)
    await tick(mock_clock, REVOLUTION_TICKS)
    assert all(peer.connection.flags & CLOSING for peer in peers)


# --- Pauses of the process ------------------------------------------------------------------------------------------


async def tick(clock, seconds):
    for _ in range(seconds):
        clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()


async def test_heartbeats_that_wait_unread_behind_a_pause_count(edge, keepalive, nursery, mock_clock):
    nursery.start_soon(keepalive.run)
    alive = [edge.connect(f"alive-{n}") for n in range(50)]
    silent = edge.connect("silent")
    await trio.testing.wait_all_tasks_blocked()
    for peer in alive:
        peer.send(encode_msgpack(Ping(1)))
    mock_clock.jump(100)  # the process stood still
    await tick(mock_clock, 1)
    nursery.start_soon(edge.parking.run)
    await tick(mock_clock, 2 * REVOLUTION_TICKS)
    assert not any(peer.connection.flags & CLOSING for peer in alive)
    assert silent.close_code() == CloseCode.HEARTBEAT_TIMEOUT


async def test_a_pause_while_the_table_is_walked_counts_too(edge, keepalive, nursery, mock_clock):
    nursery.start_soon(keepalive.run)
    alive = [edge.connect(f"alive-{n}") for n in range(50)]
    await trio.testing.wait_all_tasks_blocked()
    keepalive.on_tick.append(lambda now: mock_clock.jump(100 if now == 1 else 0))
    for peer in alive:
        peer.send(encode_msgpack(Ping(1)))
    await tick(mock_clock, 2)
    nursery.start_soon(edge.parking.run)
    await tick(mock_clock, 2 * REVOLUTION_TICKS)
    assert not any(peer.connection.flags & CLOSING for peer in alive)


async def test_a_pause_does_not_postpone_the_end_of_a_token(edge, keepalive, nursery, mock_clock):
    nursery.start_soon(keepalive.run)
    peer = edge.connect("a", ends_s=60)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(80)
    await tick(mock_clock, REVOLUTION_TICKS)
    assert peer.close_code() == CloseCode.TOKEN_EXPIRED
