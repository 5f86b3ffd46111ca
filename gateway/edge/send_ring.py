"""The same bytes to many sockets with one system call, by io_uring; with one each where the kernel does not let us.

A delivery to many is one send a connection, and on a busy core a sixth of its cost is not TCP but getting into the
kernel and back. io_uring takes a batch of sends at once. Nothing here is asynchronous: a send that would have to wait
fails with EAGAIN (MSG_DONTWAIT), so each is complete when the system call returns, and nothing of ours stays in use.

Both rings are memory shared with the kernel, which reads and writes them only inside our system call (there is no
polling thread): they need no barriers, and the order of plain loads and stores of one thread is enough.

Where io_uring is missing (kernels before 5.7), switched off (``kernel.io_uring_disabled``) or forbidden (as by Docker's
seccomp profile), ``send_each`` does the same with a system call a socket.
"""

import ctypes
import errno
import mmap
import os
import struct
import weakref
from array import array
from collections.abc import Callable, Sequence
from itertools import repeat
from socket import MSG_DONTWAIT, MSG_NOSIGNAL, SocketType
from typing import Final

import structlog

RING_SLOTS: Final = 128
"""Sends given to one system call, a power of two: about 0.7 ms of writing, as long as anybody else may wait."""

RING_SOCKETS_MIN: Final = 8
"""Sockets below which a send each is cheaper than a batch, whose preparation takes some 10 us."""

# <linux/io_uring.h>; the numbers of the system calls are those of all architectures but alpha.
_SETUP: Final = 425
_ENTER: Final = 426
_GETEVENTS: Final = 1
_OP_SEND: Final = 26
_FEATURE_FAST_POLL: Final = 1 << 5  # of 5.7; sends exist since 5.6
_SQES_OFFSET: Final = 0x10000000
_SQE_BYTES: Final = 64
_CQE_BYTES: Final = 16
_PARAMS: Final = struct.Struct("10I 8IQ 8IQ")
_U32: Final = 0xFFFF_FFFF

SendEach = Callable[[Sequence[SocketType], bytes], list[int]]
"""Send the bytes to each socket: how many bytes each took, in order; negative where it took none (full, or broken)."""

log = structlog.get_logger(__name__)

_send = SocketType.send
_fileno = SocketType.fileno
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def best_send_each() -> SendEach:
    """The cheapest way to send to many sockets that this system has."""
    try:
        return SendRing().send_each
    except OSError as error:
        log.info("large deliveries take a system call a connection", reason=f"no io_uring: {error.strerror}")
        return send_each


def send_each(socks: Sequence[SocketType], data: bytes) -> list[int]:
    """See SendEach; one system call a socket, but not one step of the interpreter."""
    sent: list[int] = []
    sends = map(_send, socks, repeat(data))
    while len(sent) < len(socks):
        try:
            sent.extend(sends)
        except OSError:
            sent.append(-1)  # what went before is in the list, and the iterator goes on behind the one that failed
    return sent


class SendRing:
    """An io_uring that does nothing but send. For one thread.

    Three descriptors (each mapping keeps a copy of its own), closed when the ring is forgotten.
    """

    def __init__(self, slots: int = RING_SLOTS) -> None:
        """Make the ring. Raises OSError when the kernel has none for us."""
        params = ctypes.create_string_buffer(_PARAMS.size)
        self._fd = _system_call(_SETUP, slots, params)
        weakref.finalize(self, os.close, self._fd)
        values = _PARAMS.unpack(params.raw)
        self._slots, results, features = values[0], values[1], values[5]
        if not features & _FEATURE_FAST_POLL:
            raise OSError(errno.ENOSYS, "the kernel's io_uring is older than 5.7")
        _sq_head, sq_tail, _, _, _, _, sq_order, *_ = values[10:19]
        cq_head, cq_tail, _, _, _, cqes, *_ = values[19:28]
        size = max(sq_order + 4 * self._slots, cqes + _CQE_BYTES * results)
        shared = memoryview(mmap.mmap(self._fd, size, offset=0))
        self._sq_tail = shared[sq_tail : sq_tail + 4].cast("I")
        self._cq_head = shared[cq_head : cq_head + 4].cast("I")
        self._cq_tail = shared[cq_tail : cq_tail + 4].cast("I")
        completions = shared[cqes : cqes + _CQE_BYTES * results]
        self._result_slots = completions.cast("Q")[0::2]
        self._results = completions.cast("i")[2::4]
        shared[sq_order : sq_order + 4 * self._slots].cast("I")[:] = array("I", range(self._slots))
        self._prepare(memoryview(mmap.mmap(self._fd, _SQE_BYTES * self._slots, offset=_SQES_OFFSET)))

    def _prepare(self, sqes: memoryview) -> None:
        """Fill in what all sends have in common; each slot's number comes back with its result."""
        words, longs = sqes.cast("i"), sqes.cast("Q")
        self._fds, self._lengths = words[1::16], words[6::16]
        self._addresses = longs[2::8]
        words[0::16] = array("i", [_OP_SEND]) * self._slots
        words[7::16] = array("i", [MSG_DONTWAIT | MSG_NOSIGNAL]) * self._slots
        longs[4::8] = array("Q", range(self._slots))

    def send_each(self, socks: Sequence[SocketType], data: bytes) -> list[int]:
        """See SendEach."""
        if len(socks) < RING_SOCKETS_MIN:
            return send_each(socks, data)
        pointer = ctypes.c_char_p(data)  # keeps the bytes where they are while the kernel reads them
        address = ctypes.c_void_p.from_buffer(pointer).value
        assert address is not None
        self._addresses[:] = array("Q", [address]) * self._slots
        self._lengths[:] = array("i", [len(data)]) * self._slots
        fds = array("i", map(_fileno, socks))
        sent: list[int] = []
        for start in range(0, len(fds), self._slots):
            sent += self._send(fds[start : start + self._slots], len(data))
        return sent

    def _send(self, fds: "array[int]", size: int) -> list[int]:
        """Send to as many as there are slots, at most."""
        tail, count = self._sq_tail[0], len(fds)
        first = tail % self._slots
        room = self._slots - first
        self._fds[first : first + count] = fds[:room]
        self._fds[: max(0, count - room)] = fds[room:]
        self._sq_tail[0] = (tail + count) & _U32
        taken = self._submit(count)
        head = self._cq_head[0]
        results = _take(self._results, head % len(self._results), taken)
        if results.count(size) < count:
            slots = _take(self._result_slots, head % len(self._results), taken)
            found = {(slot - first) % self._slots: result for slot, result in zip(slots, results, strict=True)}
            results = [found.get(place, -1) for place in range(count)]
        self._cq_head[0] = (head + taken) & _U32
        return results

    def _submit(self, count: int) -> int:
        """Have the kernel do what was entered; returns how many it did, which is fewer when it is out of memory."""
        taken = 0
        while taken < count or (self._cq_tail[0] - self._cq_head[0]) & _U32 < count:
            try:
                took = _system_call(_ENTER, self._fd, count - taken, count, _GETEVENTS, None, 0)
            except InterruptedError:
                continue  # by a signal, and before anything was taken
            except OSError:
                if taken == count:
                    raise
                took = 0
            taken += took
            if taken < count and not took:
                # The kernel looks at what was entered only when told to: the rest can be taken back.
                self._sq_tail[0] = (self._sq_tail[0] - (count - taken)) & _U32
                count = taken
        return taken


def _take(ring: memoryview, first: int, count: int) -> list[int]:
    """``count`` items of a ring from ``first`` on, round its end."""
    items: list[int] = ring[first : first + count].tolist()
    return items + ring[: max(0, first + count - len(ring))].tolist()


def _system_call(*arguments: object) -> int:
    result: int = _syscall(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
