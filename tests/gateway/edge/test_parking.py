"""Reading from parked connections."""

from itertools import pairwise

import pytest
import trio

from gateway.config import Settings
from gateway.edge.admission import Admission
from gateway.edge.parking import EVENTS_PER_SLICE, FRAMES_PER_SLICE
from protocol import limits
from protocol.errors import CloseCode
from protocol.websocket import Opcode, encode_masked_frame

MASK = b"\xa1\xb2\xc3\xd4"


def bodies(edge):
    return [payload for _, payload in edge.handled]


async def test_frames_are_handled_in_arrival_order(edge):
    peer = edge.connect("a")
    for n in range(5):
        peer.send(b"%d" % n)
    await edge.settle()
    assert bodies(edge) == [b"0", b"1", b"2", b"3", b"4"]
    assert edge.parking.frames == 5


async def test_one_of_many_ready_connections_is_read_once_a_turn(edge):
    peers = [edge.connect(f"u{n}") for n in range(EVENTS_PER_SLICE * 2)]
    for peer in peers:
        peer.send(b"x")
    await edge.settle()
    assert len(edge.handled) == len(peers)


async def test_connections_that_send_many_frames_at_once_do_not_keep_the_loop_for_all_of_them(edge, nursery):
    peers = [edge.connect(f"u{n}") for n in range(20)]
    each = FRAMES_PER_SLICE + 1
    for peer in peers:
        peer.sock.send(encode_masked_frame(2, b"x", MASK) * each)
    seen = [0]
    nursery.start_soon(edge.parking.run)
    while seen[-1] < each * len(peers):
        await trio.lowlevel.checkpoint()
        seen.append(len(edge.handled))
    # Two turns may fall between two looks, as the order of tasks within a pass is random
    assert max(after - before for before, after in pairwise(seen)) <= 2 * each
    assert [connection for connection, _ in edge.handled[::each]] == [peer.connection for peer in peers]


async def test_a_frame_in_pieces_is_kept_until_it_is_whole_and_then_forgotten(edge):
    peer = edge.connect("a")
    data = encode_masked_frame(2, b"hello", MASK)
    for byte in data[:-1]:
        peer.sock.send(bytes((byte,)))
        await edge.settle()
    assert edge.parking.partial == 1
    peer.sock.send(data[-1:])
    await edge.settle()
    assert bodies(edge) == [b"hello"]
    assert edge.parking.partial == 0


async def test_large_and_fragmented_messages(edge):
    peer = edge.connect("a")
    large = bytes(range(256)) * 200
    peer.send(large)
    peer.sock.send(encode_masked_frame(2, b"one ", MASK, fin=False) + encode_masked_frame(0, b"two", MASK))
    await edge.settle()
    assert bodies(edge) == [large, b"one two"]


async def test_pings_are_answered_and_pongs_ignored(edge):
    peer = edge.connect("a")
    peer.send(b"are you there", Opcode.PING)
    peer.send(b"", Opcode.PONG)
    await edge.settle()
    assert peer.ws_frames() == [(Opcode.PONG, b"are you there")]


async def test_pings_beyond_the_rate_get_no_pong(edge):
    edge.parking._admission = Admission(Settings(commands_per_s_max=1, commands_burst_max=3), edge.table)
    peer = edge.connect("a")
    for _ in range(10):
        peer.send(b"", Opcode.PING)
    await edge.settle()
    assert peer.ws_frames() == [(Opcode.PONG, b"")] * 3


@pytest.mark.parametrize(("payload", "code"), [(b"", 1000), ((4321).to_bytes(2, "big") + b"bye", 4321)])
async def test_a_close_is_answered_with_its_code(edge, payload, code):
    peer = edge.connect("a")
    peer.send(payload, Opcode.CLOSE)
    peer.send(b"late")
    await edge.settle()
    assert peer.close_code() == code
    assert bodies(edge) == []
    peer.sock.close()
    await edge.settle()
    assert peer.connection.fd == -1


async def test_nothing_counts_that_is_read_after_our_close_frame(edge):
    peer = edge.connect("a")
    edge.writer.close(peer.connection, CloseCode.NORMAL)
    peer.send(b"late")
    await edge.settle()
    assert bodies(edge) == []
    assert peer.close_code() == CloseCode.NORMAL


@pytest.mark.parametrize("json", [False, True])
async def test_what_was_read_together_with_the_frame_that_ended_a_connection_does_not_count(edge, json):
    peer, opcode = edge.connect("a", json=json), Opcode.TEXT if json else Opcode.BINARY

    def handle(connection, payload):
        edge.handle(connection, payload)
        edge.writer.close(connection, CloseCode.REPLACED)

    edge.parking._on_frame = handle
    peer.sock.send(b"".join(encode_masked_frame(opcode, payload, MASK) for payload in (b"first", b"second")))
    await edge.settle()
    assert bodies(edge) == [b"first"]


async def test_half_a_frame_goes_with_its_connection(edge):
    peer = edge.connect("a")
    peer.sock.send(encode_masked_frame(2, b"whole", MASK)[:8])
    await edge.settle()
    assert edge.parking.partial == 1
    peer.sock.close()
    await edge.settle()
    assert edge.parking.partial == 0


async def test_a_reset_ends_that_connection_only(edge):
    reset, other = edge.connect("reset"), edge.connect("other")
    edge.writer.write(reset.connection, b"\x82\x01x")
    reset.sock.close()  # with something unread: the kernel tells the node of a reset
    other.send(b"y")
    await edge.settle()
    assert reset.connection.fd == -1
    assert edge.gone_connections == [reset.connection]
    assert bodies(edge) == [b"y"]


async def test_the_end_of_the_stream_closes_the_connection(edge):
    peer = edge.connect("a")
    peer.sock.close()
    await edge.settle()
    assert peer.connection.fd == -1
    assert edge.gone_connections == [peer.connection]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x82\x05hello", CloseCode.PROTOCOL_ERROR),  # unmasked
        (encode_masked_frame(2, b"x", MASK, rsv=4), CloseCode.PROTOCOL_ERROR),
        (encode_masked_frame(3, b"x", MASK), CloseCode.PROTOCOL_ERROR),
        (encode_masked_frame(9, b"x", MASK, fin=False), CloseCode.PROTOCOL_ERROR),
        (b"\x82\xff" + (limits.COMMAND_BYTES_MAX + 1).to_bytes(8, "big") + MASK, CloseCode.TOO_BIG),
        (encode_masked_frame(2, b"", MASK, fin=False) + encode_masked_frame(0, b"", MASK, fin=False) * 128, 1009),
        (encode_masked_frame(1, b"\xff", MASK), CloseCode.INVALID_UTF8),
        (encode_masked_frame(1, b"[2,1]", MASK), CloseCode.UNSUPPORTED_DATA),
        (encode_masked_frame(8, b"\x03", MASK), CloseCode.PROTOCOL_ERROR),
    ],
)
async def test_broken_frames_get_the_documented_close_code(edge, data, code):
    peer = edge.connect("a")
    peer.send(b"before")
    peer.sock.send(data)
    await edge.settle()
    assert bodies(edge) == [b"before"]
    assert peer.close_code() == code


async def test_binary_under_the_json_subprotocol_is_refused(edge):
    peer = edge.connect("a", json=True)
    peer.send(b"[2,1]", Opcode.TEXT)
    peer.send(b"\x92\x02\x01", Opcode.BINARY)
    await edge.settle()
    assert bodies(edge) == [b"[2,1]"]
    assert peer.close_code() == CloseCode.UNSUPPORTED_DATA


async def test_a_fault_of_ours_ends_that_connection_only(edge):
    bad, good = edge.connect("bad"), edge.connect("good")

    def handle(connection, payload):
        if connection is bad.connection:
            raise RuntimeError("planted")
        edge.handled.append((connection, payload))

    edge.handle = handle
    edge.parking._on_frame = handle
    bad.send(b"x")
    good.send(b"y")
    await edge.settle()
    assert bad.close_code() == CloseCode.INTERNAL_ERROR
    assert bodies(edge) == [b"y"]


async def test_hearing_is_noted(edge):
    peer = edge.connect("a")
    before = edge.table.heard_s[peer.connection.fd]
    peer.send(b"x")
    await edge.settle()
    assert edge.table.heard_s[peer.connection.fd] > before
