"""Sending the same bytes to many sockets: both ways of it, over real sockets that are full, broken, or fine."""

import errno
import gc
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.edge import send_ring
from gateway.edge.send_ring import RING_SOCKETS_MIN, SendEach, SendRing, best_send_each, send_each

SLOTS = 16
"""Few, so that a test goes round the ring's end often."""


def ring_or_skip(slots: int = SLOTS) -> SendRing:
    try:
        return SendRing(slots)
    except OSError as error:
        pytest.skip(f"this system has no io_uring for us: {error}")


@pytest.fixture(params=["ring", "loop"])
def send(request: pytest.FixtureRequest) -> SendEach:
    return ring_or_skip().send_each if request.param == "ring" else send_each


class Pairs:
    """Connected pairs of sockets: ``ours`` send, ``theirs`` receive."""

    def __init__(self, count: int, stack: ExitStack) -> None:
        made = [socket.socketpair() for _ in range(count)]
        for ours, theirs in made:
            stack.enter_context(ours)
            stack.enter_context(theirs)
            ours.setblocking(False)
            theirs.setblocking(False)
        self.ours = [pair[0] for pair in made]
        self.theirs = [pair[1] for pair in made]

    def received(self) -> list[bytes]:
        return [_drain(sock) for sock in self.theirs]


def _drain(sock: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            chunk = sock.recv(65_536)
        except BlockingIOError:
            return data
        if not chunk:
            return data
        data += chunk


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _fill(sock: socket.socket) -> int:
    """Send until the socket is full; how many bytes it took."""
    total = 0
    while True:
        try:
            total += sock.send(bytes(65_536))
        except BlockingIOError:
            return total


@pytest.mark.parametrize("count", [0, 1, RING_SOCKETS_MIN - 1, RING_SOCKETS_MIN, SLOTS, SLOTS + 1, 5 * SLOTS + 3])
def test_every_socket_gets_the_bytes_once(send: SendEach, stack: ExitStack, count: int) -> None:
    pairs = Pairs(count, stack)
    for number in range(3):
        data = f"entry {number}".encode() * 40
        assert send(pairs.ours, data) == [len(data)] * count
        assert pairs.received() == [data] * count


def test_full_and_broken_sockets_are_told_apart_from_their_neighbours(send: SendEach, stack: ExitStack) -> None:
    pairs = Pairs(3 * SLOTS, stack)
    full, closed, reset = 1, SLOTS + 2, 2 * SLOTS + 5
    filled = _fill(pairs.ours[full])
    pairs.ours[closed].close()
    pairs.theirs[reset].close()
    sent = send(pairs.ours, b"to all")
    for number, count in enumerate(sent):
        if number in (full, closed, reset):
            assert count < 0, number
        else:
            assert count == 6
            assert _drain(pairs.theirs[number]) == b"to all"
    assert len(_drain(pairs.theirs[full])) == filled


def test_a_socket_with_little_room_takes_a_part(send: SendEach, stack: ExitStack) -> None:
    pairs = Pairs(RING_SOCKETS_MIN, stack)
    data = os.urandom(4 * 1024 * 1024)
    sent = send(pairs.ours, data)
    assert all(0 < count < len(data) for count in sent)
    assert pairs.received() == [data[:count] for count in sent]


@given(counts=st.lists(st.integers(0, 3 * SLOTS), max_size=8), broken=st.sets(st.integers(0, 3 * SLOTS), max_size=6))
def test_results_stay_in_the_order_of_the_sockets_however_often_the_ring_goes_round(
    counts: list[int], broken: set[int]
) -> None:
    ring = ring_or_skip()
    with ExitStack() as stack:
        pairs = Pairs(3 * SLOTS, stack)
        for number in broken & set(range(len(pairs.ours))):
            pairs.ours[number].close()
        for turn, count in enumerate(counts):
            data = bytes([turn + 1]) * (turn + 1)
            sent = ring.send_each(pairs.ours[:count], data)
            assert [result < 0 for result in sent] == [number in broken for number in range(count)]
            expected = [data if number < count and number not in broken else b"" for number in range(len(pairs.ours))]
            assert pairs.received() == expected


def test_sends_that_the_kernel_did_not_take_are_taken_back(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = ring_or_skip()
    pairs = Pairs(SLOTS, stack)
    real, calls = send_ring._system_call, []

    def out_of_memory(number: int, fd: int, to_submit: int, *rest: object) -> int:
        """Take three, then none for want of memory."""
        calls.append(to_submit)
        if len(calls) == 1:
            return real(number, fd, 3, 0, *rest[1:])
        raise OSError(errno.EAGAIN, "out of memory")

    monkeypatch.setattr(send_ring, "_system_call", out_of_memory)
    assert ring.send_each(pairs.ours, b"first") == [5] * 3 + [-1] * (SLOTS - 3)
    assert calls == [SLOTS, SLOTS - 3]
    monkeypatch.setattr(send_ring, "_system_call", real)
    assert ring.send_each(pairs.ours, b"second") == [6] * SLOTS
    assert pairs.received() == [b"firstsecond"] * 3 + [b"second"] * (SLOTS - 3)


def test_a_signal_in_the_middle_changes_nothing(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = ring_or_skip()
    pairs = Pairs(SLOTS, stack)
    real, interrupted = send_ring._system_call, []

    def interrupt_once(*arguments: object) -> int:
        if not interrupted:
            interrupted.append(True)
            raise InterruptedError
        return real(*arguments)

    monkeypatch.setattr(send_ring, "_system_call", interrupt_once)
    assert ring.send_each(pairs.ours, b"once") == [4] * SLOTS
    assert pairs.received() == [b"once"] * SLOTS


def test_without_io_uring_each_socket_is_a_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(send_ring, "_system_call", forbidden)
    assert best_send_each() is send_each


def test_a_forgotten_ring_leaves_no_descriptor() -> None:
    gc.collect()  # rings of other tests' hubs, which are part of cycles
    before = _rings()
    ring = ring_or_skip()
    assert _rings() > before
    del ring
    assert _rings() == before


def _rings() -> set[str]:
    """Descriptors of this process that are io_urings."""
    return {path.name for path in Path("/proc/self/fd").iterdir() if "io_uring" in _target(path)}


def _target(path: Path) -> str:
    return str(path.readlink()) if path.is_symlink() else ""
