"""Both ends of many 1:1 conversations: sends with a time in the body, acknowledgements counted, deliveries timed."""

import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from random import Random

from msgspec import Struct

from bench.errors import BenchError
from bench.load.accounts import Door
from bench.load.connect import open_connections
from bench.load.messages import SendTemplate, count_acks, stamps_in
from bench.load.wire import client_frame, server_frames, unread_from
from bench.machine import Busy, Cores, Meter
from protocol.codec import decode_server_frame, encode_msgpack
from protocol.frames import Sync, SyncPage

PACE_SEED = 1
"""Every window of an open loop has the same sends at the same times."""

SILENCE_S = 10.0
"""Seconds without an acknowledgement or delivery, with some missing, that end the benchmark."""

TICK_S = 0.001
"""Seconds between two looks of an open loop at what is due and at what came. It sleeps in between, so that nothing that
comes wakes it: on one machine the sender of each packet would pay for that, as it does not for clients elsewhere."""


class SendSample(Struct, frozen=True):
    """What one window of sending gave. ``latencies_ns`` are of deliveries, from the moment the send was due."""

    acknowledged: int
    delivered: int
    latencies_ns: list[int]
    busy: Busy


class _Sender:
    """The sending end of one pair."""

    __slots__ = ("fd", "number", "rest", "template")

    def __init__(self, fd: int, template: SendTemplate) -> None:
        self.fd, self.template = fd, template
        self.number = 0
        self.rest = b""


class Pairs:
    """All pairs. ``conversations[i]`` is between ``senders[i]`` and ``receivers[i]``."""

    def __init__(
        self,
        door: Door,
        cores: Cores,
        senders: list[str],
        receivers: list[str],
        conversations: list[str],
        *,
        receivers_door: Door | None = None,
        backends: Sequence[int] = (),
    ) -> None:
        """Connect all ends: the sending ones at ``door``, the receiving ones there or at a door of their own."""
        receivers_door = receivers_door or door
        self._pids, self._backends, self._cores = {door.pid, receivers_door.pid}, backends, cores
        self._connections = [*_connect(door, senders), *_connect(receivers_door, receivers)]
        fds = [connection.fileno() for connection in self._connections]
        self._senders = {
            fd: _Sender(fd, SendTemplate(conversation, user))
            for fd, user, conversation in zip(fds, senders, conversations, strict=False)
        }
        self._rests = dict.fromkeys(fds[len(senders) :], b"")
        self._epoll = select.epoll()
        for fd in fds:
            self._epoll.register(fd, select.EPOLLIN)
        self._sent = self._acknowledged = self._delivered = 0
        self._latencies: list[int] = []

    def saturate(self, window: int, settle_s: float, seconds: float) -> SendSample:
        """Every sender keeps ``window`` sends unacknowledged, for ``settle_s`` and then for ``seconds`` measured."""
        for sender in self._senders.values():
            self._send(sender, window, time.perf_counter_ns())
        self._look(time.perf_counter_ns() + int(settle_s * 1e9), refill=True)
        sample = self._measure(lambda: self._look(time.perf_counter_ns() + int(seconds * 1e9), refill=True))
        self._settle()
        return sample

    def paced(self, rate_per_s: float, settle_s: float, seconds: float) -> SendSample:
        """Send at a fixed rate, whatever comes back; latencies count from the moment each send was due."""
        self._pace(rate_per_s, settle_s)
        sample = self._measure(lambda: self._pace(rate_per_s, seconds))
        self._settle()
        return sample

    def _measure(self, run: Callable[[], None]) -> SendSample:
        self._latencies = []
        acknowledged, delivered = self._acknowledged, self._delivered
        meter = Meter(list(self._pids), os.getpid(), cores=self._cores, backends=self._backends)
        run()
        busy = meter.stop()
        latencies, self._latencies = self._latencies, []
        return SendSample(self._acknowledged - acknowledged, self._delivered - delivered, latencies, busy)

    def _pace(self, rate_per_s: float, seconds: float) -> None:
        """Sends as users make them who know nothing of each other: a Poisson process, and nobody takes turns."""
        rng = Random(PACE_SEED)
        senders, interval_ns = list(self._senders.values()), 1e9 / rate_per_s
        due_ns = time.perf_counter_ns()
        end_ns = due_ns + int(seconds * 1e9)
        while due_ns < end_ns:
            now_ns = min(end_ns, time.perf_counter_ns())
            while due_ns < now_ns:
                self._send(rng.choice(senders), 1, due_ns)
                due_ns += int(rng.expovariate(1.0) * interval_ns) + 1
            time.sleep(TICK_S)
            self._take(0.0, refill=False)

    def _send(self, sender: _Sender, count: int, stamp_ns: int) -> None:
        make, number = sender.template.make, sender.number
        frames = b"".join([make(number + step, stamp_ns) for step in range(1, count + 1)])
        sender.number = number + count
        self._sent += count
        if os.write(sender.fd, frames) != len(frames):
            raise BenchError("the node takes no more sends on a connection: its socket is full")

    def _look(self, until_ns: int, *, refill: bool) -> None:
        """Handle what comes until then; with ``refill`` each acknowledgement is answered by a new send."""
        now = time.perf_counter_ns
        while (left_ns := until_ns - now()) > 0:
            self._take(left_ns / 1e9, refill=refill)

    def _take(self, wait_s: float, *, refill: bool) -> None:
        """Handle what has come, of what comes within ``wait_s`` seconds the first."""
        senders = self._senders
        for fd, _events in self._epoll.poll(wait_s):
            data = os.read(fd, 65_536)
            if not data:
                raise BenchError("the node closed a connection during sends")
            sender = senders.get(fd)
            if sender is None:
                self._deliveries(fd, data)
                continue
            acks = self._acks(sender, data)
            if refill and acks:
                self._send(sender, acks, time.perf_counter_ns())

    def _acks(self, sender: _Sender, data: bytes) -> int:
        data = sender.rest + data
        acks, taken = count_acks(data)
        sender.rest = data[taken:]
        self._acknowledged += acks
        return acks

    def _deliveries(self, fd: int, data: bytes) -> None:
        arrived_ns = time.perf_counter_ns()
        data = self._rests[fd] + data
        end = unread_from(data)
        self._rests[fd] = data[end:]
        stamps = stamps_in(data[:end])
        self._delivered += len(stamps)
        self._latencies += [arrived_ns - stamp_ns for stamp_ns in stamps]

    def _settle(self) -> None:
        """Wait until everything that was sent is acknowledged and delivered."""
        heard_at, heard = time.monotonic(), -1
        while min(self._acknowledged, self._delivered) < self._sent:
            self._look(time.perf_counter_ns() + 50_000_000, refill=False)
            if self._acknowledged + self._delivered != heard:
                heard_at, heard = time.monotonic(), self._acknowledged + self._delivered
            elif time.monotonic() - heard_at > SILENCE_S:
                raise BenchError(
                    f"of {self._sent} sends {self._acknowledged} were acknowledged and {self._delivered} delivered,"
                    f" and nothing more came for {SILENCE_S:g} s"
                )


def _connect(door: Door, users: list[str]) -> list[socket.socket]:
    """Connect, and sync as clients do: nodes of a cluster promise what they push from the answer on."""
    requests = [door.request(user, seed=1) for user in users]
    connections = open_connections(door.host, door.port, requests, frames=door.welcome_frames)
    for connection in connections:
        connection.setblocking(True)
        connection.settimeout(SILENCE_S)
        connection.sendall(client_frame(encode_msgpack(Sync(1))))
    for connection in connections:
        data = b""
        while not any(_ends_sync(data[start:stop]) for _, start, stop in server_frames(data)):
            chunk = connection.recv(65_536)
            if not chunk:
                raise BenchError("the node closed a connection instead of answering its Sync")
            data += chunk
        connection.setblocking(False)
    return connections


def _ends_sync(payload: bytes) -> bool:
    frame = decode_server_frame(payload)
    return isinstance(frame, SyncPage) and frame.done
