"""The two sides of a fan-out: readers that count bytes, and a sender that keeps some entries in flight.

They are two processes on one core. The readers look every few milliseconds and take whatever has come: woken by every
write they would cost the server an interrupt each, and a reader far away does not do that. The sender is driven by
the acknowledgement, which a server sends behind its last write.
"""

import os
import select
import socket
import time

from bench.errors import BenchError
from bench.load.accounts import Door
from bench.load.connect import open_connections
from bench.load.messages import SEQ_LAST, SendTemplate, count_acks
from bench.load.setup import receive_exactly
from bench.load.wire import client_frame

LOOK_INTERVAL_S = 0.002
"""Seconds between two looks of the readers."""

SILENCE_S = 20.0
"""Seconds without a byte, with bytes missing, that end a benchmark."""


class Readers:
    """The members' connections of one conversation."""

    def __init__(self, door: Door, users: list[str], *, first_address: int = 0) -> None:
        """Connect one per user."""
        requests = [door.request(user, path="/member") for user in users]
        self._watch(
            open_connections(door.host, door.port, requests, frames=door.welcome_frames, first_address=first_address)
        )

    def _watch(self, connections: list[socket.socket]) -> None:
        """Begin to count what comes on these."""
        os.nice(10)  # the sender, a process of its own on the same core, goes first
        self._connections = connections
        self._read = {connection.fileno(): connection.recv_into for connection in self._connections}
        self._counts = dict.fromkeys(self._read, 0)
        self._epoll = select.epoll()
        for fd in self._read:
            self._epoll.register(fd, select.EPOLLIN)
        self._buffer = bytearray(262_144)

    def receive(self, bytes_each: int) -> int:
        """Read until every connection has got ``bytes_each`` bytes; the monotonic time, in ns, when that was so.

        Raises BenchError when one is closed, gets more, or nothing comes for ``SILENCE_S``.
        """
        counts = self._counts = dict.fromkeys(self._read, 0)
        want = bytes_each * len(counts)
        heard_at = time.monotonic()
        read, buffer, poll = self._read, self._buffer, self._epoll.poll
        while want > 0:
            ready = poll(0)
            for fd, _events in ready:
                count = read[fd](buffer)
                if count == 0:
                    raise BenchError("a member's connection was closed during a fan-out")
                counts[fd] += count
                want -= count
            if ready:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > SILENCE_S:
                raise BenchError(f"members still miss {want} bytes after {SILENCE_S:g} s of silence")
            if want > 0:
                time.sleep(LOOK_INTERVAL_S)
        ended_ns = time.perf_counter_ns()
        wrong = sum(count != bytes_each for count in counts.values())
        if wrong:
            raise BenchError(f"{wrong} of {len(counts)} members got a wrong number of bytes in a fan-out")
        return ended_ns


class NodeSender:
    """A member who sends to the conversation and reads the acknowledgements."""

    def __init__(self, door: Door, user: str, conversation_id: str, head_seq: int) -> None:
        """Connect as ``user``, who has to be a member; ``head_seq`` is the conversation's."""
        [self._connection] = open_connections(door.host, door.port, [door.request(user, seed=1)], frames=1)
        self._connection.settimeout(SILENCE_S)
        self._template = SendTemplate(conversation_id, user)
        self._number = 0
        self._seq = head_seq

    def run(self, rounds: int, in_flight: int) -> int:
        """Send ``in_flight`` entries at once, wait for their acknowledgements, repeat; returns the time of the last."""
        self._seq += rounds * in_flight
        if self._seq > SEQ_LAST:
            raise BenchError(f"the benchmark's conversation would outgrow seq {SEQ_LAST}: fewer rounds, please")
        for _ in range(rounds):
            frames = []
            for _ in range(in_flight):
                self._number += 1
                frames.append(self._template.make(self._number))
            self._connection.sendall(b"".join(frames))
            self._await_acks(in_flight)
        return time.perf_counter_ns()

    def paced(self, count: int, rate_per_s: float) -> int:
        """Send ``count`` entries one at a time, at most so many a second; returns the time of the last."""
        began, ended_ns = time.monotonic(), 0
        for sent in range(count):
            time.sleep(max(0.0, sent / rate_per_s - (time.monotonic() - began)))
            ended_ns = self.run(1, 1)
        return ended_ns

    def _await_acks(self, missing: int) -> None:
        data = b""
        while missing > 0:
            chunk = self._connection.recv(65_536)
            if not chunk:
                raise BenchError("the node closed the sender's connection")
            data += chunk
            acks, taken = count_acks(data)
            missing -= acks
            data = data[taken:]


class PlainSender:
    """The connection of a peer that makes it write to all others; one short frame comes back after each."""

    DONE_BYTES = 3

    def __init__(self, door: Door, payload_bytes: int) -> None:
        """Connect as the peer's /sender."""
        [self._connection] = open_connections(door.host, door.port, [door.request("sender", path="/sender")])
        self._connection.settimeout(SILENCE_S)
        self._frame = client_frame(b"." * payload_bytes)

    def run(self, rounds: int, in_flight: int) -> int:
        """As NodeSender.run."""
        for _ in range(rounds):
            self._connection.sendall(self._frame * in_flight)
            receive_exactly(self._connection, self.DONE_BYTES * in_flight)
        return time.perf_counter_ns()
