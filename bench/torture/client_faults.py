"""Faults of clients: slow, gone all at once, dripping, talking nonsense."""

import contextlib
from typing import Final

import trio

from bench.torture.node import PORT, TrialNode
from bench.torture.raw import NotUpgraded, upgrade_request, upgraded
from bench.torture.trial import Trial
from protocol import limits
from protocol.codec import encode_msgpack
from protocol.errors import CloseCode
from protocol.frames import History
from protocol.websocket import Opcode, encode_masked_frame

HANDSHAKE_TIMEOUT_S: Final = 4.0
"""What nodes under trial allow for a handshake, seconds: less than the default of 10, so that a run is short."""

QUEUE_AGE_MAX_S: Final = 3.0
"""What nodes under trial allow bytes to wait for a slow reader, seconds: less than the default, too."""

SETTINGS: Final = (
    "--handshake-timeout-s", f"{HANDSHAKE_TIMEOUT_S:g}", "--send-queue-age-max-s", f"{QUEUE_AGE_MAX_S:g}",
)  # fmt: skip
"""Options of ``tidegate serve`` that go with these faults."""

LATE_S: Final = 4.0
"""Seconds beyond a limit after which it counts as not kept: machines that run trials are busy."""

DRIPPING: Final = 40
"""Handshakes of one byte a second at once."""

HONEST_S: Final = 5.0
"""Seconds that an honest handshake may take meanwhile."""

CLOSED_S: Final = 10.0
"""Seconds beyond that age until the slow reader must be gone: its requests are answered first."""

SLOW_METRIC: Final = "tidegate_slow_consumers_total"
"""What a node counts connections by that it closed for being slow."""

SLOW_REQUESTS: Final = 4_000
"""Pages of history that the slow reader asks for and does not read: kernels buffer 4 MB of a young conversation's."""

_MASK: Final = b"\x01\x02\x03\x04"

GARBAGE: Final = {
    "an oversize frame": (
        b"\x82\xff" + (limits.COMMAND_BYTES_MAX + 1).to_bytes(8, "big") + _MASK, CloseCode.TOO_BIG,
    ),
    "an unmasked frame": (b"\x82\x03\x93\x02\x01", CloseCode.PROTOCOL_ERROR),
    "a frame in endless pieces": (
        encode_masked_frame(Opcode.BINARY, b"", _MASK, fin=False)
        + encode_masked_frame(Opcode.CONTINUATION, b"", _MASK, fin=False) * limits.FRAGMENTS_MAX,
        CloseCode.TOO_BIG,
    ),
    "a reserved opcode": (encode_masked_frame(3, b"", _MASK), CloseCode.PROTOCOL_ERROR),
    "a message that is no frame": (encode_masked_frame(Opcode.BINARY, b"\xc1", _MASK), CloseCode.BAD_FRAME),
    "text where binary is spoken": (encode_masked_frame(Opcode.TEXT, b"[2,1]", _MASK), CloseCode.UNSUPPORTED_DATA),
}  # fmt: skip
"""What is sent, and the close code that PROTOCOL.md promises for it."""


async def drop_all(trial: Trial) -> None:
    """All connections of all clients are reset at once."""
    trial.begin("drop-all", "every client's connection is reset")
    for node in trial.cluster.nodes:
        node.ways.clients.cut()
    await trio.sleep(trial.rng.uniform(0.5, 2))


async def garbage(trial: Trial) -> None:
    """Broken frames of every kind: each gets its documented close code, and the node goes on."""
    async with trial.some_node() as node:
        trial.begin("garbage", f"{node.name}, {len(GARBAGE)} kinds of broken frames")
        for what, (data, expected) in GARBAGE.items():
            try:
                async with upgraded(node, trial.prober_token, "garbage") as connection:
                    await connection.stream.send_all(data)
                    code = await connection.close_code()
            except (NotUpgraded, OSError, trio.TooSlowError) as error:
                trial.breach("garbage", f"{what} at {node.name}: {error!r}")
                continue
            if code != expected:
                trial.breach("garbage", f"{what} was closed with {code}; documented is {expected:d}")
        if not node.running:
            trial.breach("garbage", f"{node.name} has ended")


async def slow_reader(trial: Trial) -> None:
    """A client asks for much and reads nothing: it is closed within its limit, and nobody else notices."""
    async with trial.some_node() as node:
        trial.begin("slow-reader", f"{node.name}, {SLOW_REQUESTS} pages asked for and not read")
        conversation = trial.rng.choice(trial.prober.conversations)
        try:
            async with upgraded(node, trial.prober_token, "slow", receive_buffer_bytes=4_096) as connection:
                before = await node.metric(SLOW_METRIC)
                await _ask_much(connection.stream, conversation)
                if await _closed_as_slow(node, before or 0):
                    return
        except (NotUpgraded, OSError) as error:
            trial.late("slow-reader", f"not let in by {node.name}: {error!r}")
            return
        trial.late("slow-reader", f"{node.name} did not close a connection that reads nothing")


async def _closed_as_slow(node: TrialNode, before: float) -> bool:
    """Wait until the node has closed one more connection for being slow; False if it does not in time."""
    with trio.move_on_after(QUEUE_AGE_MAX_S + CLOSED_S):
        while True:
            if (await node.metric(SLOW_METRIC) or 0) > before:
                return True
            await trio.sleep(0.2)
    return False


async def _ask_much(stream: trio.SocketStream, conversation: str) -> None:
    """Ask without reading, until the node stops reading itself or has enough."""
    with trio.move_on_after(QUEUE_AGE_MAX_S):
        try:
            for number in range(1, SLOW_REQUESTS + 1):
                command = encode_msgpack(History(number, conversation, limit=limits.HISTORY_ENTRIES_MAX))
                await stream.send_all(encode_masked_frame(Opcode.BINARY, command, _MASK))
        except trio.BrokenResourceError:
            return  # closed already, as it should be


async def drip(trial: Trial) -> None:
    """Handshakes at one byte a second from many: cut at their limit, while an honest client gets in."""
    async with trial.some_node() as node:
        trial.begin("drip", f"{node.name}, {DRIPPING} handshakes at one byte a second")
        async with trio.open_nursery() as nursery:
            for _ in range(DRIPPING):
                nursery.start_soon(_drip_once, trial, node)
            await trio.sleep(1)
            begun_s = trio.current_time()
            try:
                async with upgraded(node, trial.prober_token, "honest"):
                    took_s = trio.current_time() - begun_s
            except (NotUpgraded, OSError) as error:
                trial.breach("drip", f"an honest client was not let in by {node.name}: {error!r}")
                return
            if took_s > HONEST_S:
                trial.late("drip", f"an honest client waited {took_s:.1f} s; allowed are {HONEST_S:g} s")


async def _drip_once(trial: Trial, node: TrialNode) -> None:
    """One handshake, a byte a second, until it is cut."""
    begun_s = trio.current_time()
    with trio.move_on_after(HANDSHAKE_TIMEOUT_S + LATE_S) as patience, contextlib.suppress(OSError):
        async with await trio.open_tcp_stream(node.host, PORT) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(_write_slowly, stream, upgrade_request(trial.prober_token, "drip"))
            await _read_to_end(stream)
            nursery.cancel_scope.cancel()
    if patience.cancelled_caught:
        trial.late("drip", f"a handshake at one byte a second lasted {trio.current_time() - begun_s:.1f} s")


async def _read_to_end(stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some(4_096):
            pass


async def _write_slowly(stream: trio.SocketStream, data: bytes) -> None:
    """A byte a second, until all is written or nobody wants more."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for byte in data:
            await stream.send_all(bytes((byte,)))
            await trio.sleep(1)
