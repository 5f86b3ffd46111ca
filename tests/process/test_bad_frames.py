"""Frames that break RFC 6455 or the subprotocol, over real sockets: the documented close code, nobody else harmed."""

import msgspec
import pytest

from bench.processes import NodeProcess
from protocol import limits
from protocol.errors import CloseCode, ErrorCode
from protocol.frames import ErrorReply, Ping, Pong
from protocol.websocket import Opcode, encode_masked_frame
from tests.process.wire import connected

pytestmark = pytest.mark.process

BINARY, TEXT = Opcode.BINARY, Opcode.TEXT
MASK = b"\x01\x02\x03\x04"


def _frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    return encode_masked_frame(opcode, payload, MASK, fin=fin, rsv=rsv)


BROKEN = {
    "oversize": (b"\x82\xff" + (limits.COMMAND_BYTES_MAX + 1).to_bytes(8, "big") + MASK, CloseCode.TOO_BIG),
    "absurd length": (b"\x82\xff" + (2**62).to_bytes(8, "big") + MASK, CloseCode.TOO_BIG),
    "length with the top bit": (b"\x82\xff" + (2**63 + 1).to_bytes(8, "big") + MASK, CloseCode.PROTOCOL_ERROR),
    "oversize in two": (
        _frame(BINARY, bytes(60_000), fin=False) + _frame(Opcode.CONTINUATION, bytes(6_000)),
        CloseCode.TOO_BIG,
    ),
    "unmasked": (b"\x82\x03\x93\x02\x01", CloseCode.PROTOCOL_ERROR),
    "fragmented for ever": (
        _frame(BINARY, fin=False) + _frame(Opcode.CONTINUATION, fin=False) * limits.FRAGMENTS_MAX,
        CloseCode.TOO_BIG,
    ),
    "reserved bit 1": (_frame(BINARY, b"\x92\x02\x01", rsv=4), CloseCode.PROTOCOL_ERROR),
    "reserved bit 3": (_frame(BINARY, b"\x92\x02\x01", rsv=1), CloseCode.PROTOCOL_ERROR),
    "reserved opcode": (_frame(3), CloseCode.PROTOCOL_ERROR),
    "reserved control opcode": (_frame(11), CloseCode.PROTOCOL_ERROR),
    "oversize ping": (_frame(Opcode.PING, bytes(126)), CloseCode.PROTOCOL_ERROR),
    "fragmented ping": (_frame(Opcode.PING, fin=False), CloseCode.PROTOCOL_ERROR),
    "continuation of nothing": (_frame(Opcode.CONTINUATION), CloseCode.PROTOCOL_ERROR),
    "message within a message": (_frame(BINARY, fin=False) + _frame(BINARY), CloseCode.PROTOCOL_ERROR),
    "bad UTF-8 in text": (_frame(TEXT, b"\xce\xba\xff"), CloseCode.INVALID_UTF8),
    "bad UTF-8 in a close reason": (_frame(Opcode.CLOSE, b"\x03\xe8\xff\xff"), CloseCode.INVALID_UTF8),
    "close code 1005": (_frame(Opcode.CLOSE, b"\x03\xed"), CloseCode.PROTOCOL_ERROR),
    "close code of one byte": (_frame(Opcode.CLOSE, b"\x03"), CloseCode.PROTOCOL_ERROR),
    "text under msgpack": (_frame(TEXT, b"[2,1]"), CloseCode.UNSUPPORTED_DATA),
}

NOT_FRAMES = {
    "empty": b"",
    "not an array": b"\x81\xa1a\x01",
    "no tag": b"\x90",
    "a tag that is no number": b"\x92\xa1x\x01",
    "cut short": b"\x92\x02",
    "trailing bytes": b"\x92\x02\x01\x00",
    "an array that promises 4 billion": b"\xdd\xff\xff\xff\xff\x02",
    "a string that promises 4 GB": b"\x95\x03\x01\xdb\xff\xff\xff\xffabc",
    "a map that promises 4 billion": b"\x93\x0a\x01\xdf\xff\xff\xff\xff",
    "deep nesting": b"\x91" * 60_000 + b"\x02",
    "deep nesting behind the fields": b"\x93\x02\x01" + b"\x91" * 60_000 + b"\x02",
    "a reserved byte": b"\xc1",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_websocket_frame_gets_its_close_code(node: NodeProcess, name: str) -> None:
    data, code = BROKEN[name]
    async with connected(node, "alice") as wire, connected(node, "bob") as neighbour:
        await wire.send_bytes(data)
        closed = await wire.closed()
        assert closed.code == code, closed
        assert await neighbour.ask(Ping(), Pong)


@pytest.mark.parametrize("name", NOT_FRAMES)
async def test_a_message_that_is_no_frame_gets_4201(node: NodeProcess, name: str) -> None:
    async with connected(node, "alice") as wire, connected(node, "bob") as neighbour:
        await wire.send_frame(NOT_FRAMES[name])
        closed = await wire.closed()
        assert closed.code == CloseCode.BAD_FRAME, closed
        assert closed.reason
        assert await neighbour.ask(Ping(), Pong)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"{}", b"[2,1] x", b"[" * 30_000, b'"\\ud800"', b"[2,1"])
async def test_json_that_is_no_frame_gets_4201(node: NodeProcess, data: bytes) -> None:
    async with connected(node, "alice", json=True) as wire:
        await wire.send_frame(data)
        assert (await wire.closed()).code == CloseCode.BAD_FRAME


async def test_a_binary_message_under_json_is_unsupported(node: NodeProcess) -> None:
    async with connected(node, "alice", json=True) as wire:
        await wire.send_frame(b"\x92\x02\x01", Opcode.BINARY)
        assert (await wire.closed()).code == CloseCode.UNSUPPORTED_DATA


async def test_what_was_whole_before_the_breach_is_answered(node: NodeProcess) -> None:
    async with connected(node, "alice") as wire:
        ping = msgspec.msgpack.encode(Ping(7))
        await wire.send_bytes(_frame(BINARY, ping) + _frame(3))
        assert await wire.reply(7, Pong)
        assert (await wire.closed()).code == CloseCode.PROTOCOL_ERROR


# --- well-formed frames that say the wrong thing ----------------------------------------------------------------------

REFUSED = {
    "a tag nobody knows": ([39, 5], ErrorCode.UNKNOWN_COMMAND, "39"),
    "a reply sent as a command": ([40, 5], ErrorCode.UNKNOWN_COMMAND, "40"),
    "a huge tag": ([2**40, 5], ErrorCode.UNKNOWN_COMMAND, ""),
    "a missing field": ([3, 5, "c", "m"], ErrorCode.BAD_REQUEST, ""),
    "a body that is a number": ([3, 5, "c", "m", 7], ErrorCode.BAD_REQUEST, "str"),
    "a body that is bytes": ([3, 5, "c", "m", b"x"], ErrorCode.BAD_REQUEST, "str"),
    "metadata with a number": ([3, 5, "c", "m", "b", {"k": 1}], ErrorCode.BAD_REQUEST, "str"),
    "an empty client_msg_id": ([3, 5, "c", "", "b"], ErrorCode.BAD_REQUEST, "length"),
    "a long client_msg_id": ([3, 5, "c", "m" * 65, "b"], ErrorCode.BAD_REQUEST, "64"),
    "a long conversation id": ([3, 5, "c" * 65, "m", "b"], ErrorCode.BAD_REQUEST, "64"),
    "attempt 0": ([3, 5, "c", "m", "b", None, 0], ErrorCode.BAD_REQUEST, "1"),
    "a history of 201": ([11, 5, "c", None, None, 201], ErrorCode.BAD_REQUEST, "200"),
    "a history of none": ([11, 5, "c", None, None, 0], ErrorCode.BAD_REQUEST, "1"),
    "a negative seq": ([8, 5, "c", -1], ErrorCode.BAD_REQUEST, ""),
    "a seq above 2**53": ([8, 5, "c", 2**53], ErrorCode.BAD_REQUEST, ""),
    "a kind of conversation nobody knows": ([4, 5, 9, ["bob"], "m"], ErrorCode.BAD_REQUEST, ""),
    "an empty member": ([4, 5, 1, [""], "m"], ErrorCode.BAD_REQUEST, "length"),
    "257 members": ([4, 5, 2, [f"u{n}" for n in range(257)], "m"], ErrorCode.BAD_REQUEST, "256"),
    "101 watched users": ([14, 5, [f"u{n}" for n in range(101)]], ErrorCode.BAD_REQUEST, "100"),
    "nesting where a body belongs": ([3, 5, "c", "m", [[[[]]]]], ErrorCode.BAD_REQUEST, "str"),
}


@pytest.mark.parametrize("json", [False, True], ids=["msgpack", "json"])
async def test_a_well_formed_frame_that_is_wrong_is_refused_and_the_connection_lives(
    node: NodeProcess, json: bool
) -> None:
    encode = msgspec.json.encode if json else msgspec.msgpack.encode
    async with connected(node, "alice", json=json) as wire:
        for name, (frame, code, said) in REFUSED.items():
            if json and any(isinstance(field, bytes) for field in frame):
                continue  # JSON has no bytes
            await wire.send_frame(encode(frame))
            reply = await wire.reply(5, ErrorReply)
            assert reply.code == code, name
            assert said in reply.message, name
        assert await wire.ask(Ping(), Pong)


async def test_a_request_id_out_of_range_is_refused_without_one(node: NodeProcess) -> None:
    async with connected(node, "alice") as wire:
        for request_id in (-1, 2**32, "x", None):
            await wire.send_frame(msgspec.msgpack.encode([2, request_id]))
            assert (await wire.reply(0, ErrorReply)).code == ErrorCode.BAD_REQUEST


async def test_unknown_trailing_fields_are_passed_over(node: NodeProcess) -> None:
    async with connected(node, "alice") as wire:
        await wire.send_frame(msgspec.msgpack.encode([2, 9, "new", {"in": ["version", 2]}]))
        assert await wire.reply(9, Pong)
