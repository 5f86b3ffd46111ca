"""The order of system calls: no acknowledgement leaves before the log it rests on is on the disk."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import trio

from bench.processes import NodeProcess
from protocol import codec
from protocol.frames import ConversationKind, ConversationReply, CreateConversation, Send, SendAck
from protocol.websocket import Opcode, encode_masked_frame, read_header
from tests.process.wire import connected

pytestmark = pytest.mark.process

SENDS = 200
WINDOW = 16

TRACED = "write,writev,sendto,sendmsg,pwrite64,pwritev,pwritev2,fdatasync,fsync"
_CALL = re.compile(r'^(\d+) +(\w+)\((\d+)<([^>]*)>(?:, (?:\[\{iov_base=)?"([^"]*)")?')
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>.*= (-?\d+)")


class Call(NamedTuple):
    """A system call: the lines of the trace at which it began and ended, on what, with which bytes."""

    name: str
    file: str
    data: bytes
    began: int
    ended: int


def _strace() -> str:
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed (apt install strace)")
    if subprocess.run([path, "-o", "/dev/null", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here (the kernel or the container forbids ptrace)")
    return path


def _calls(trace: Path) -> list[Call]:
    """The calls of a trace, in the order in which they began."""
    calls: list[Call] = []
    open_calls: dict[str, int] = {}
    for number, line in enumerate(trace.read_text().splitlines()):
        if (begun := _CALL.match(line)) is not None:
            thread, name, _, file, text = begun.groups()
            unfinished = line.endswith("<unfinished ...>")
            assert unfinished or not line.rsplit("=", 1)[1].strip().startswith("-") or "EAGAIN" in line, line[-200:]
            file, data = _bytes(file).decode(), _bytes(text or "")
            if unfinished:
                open_calls[thread] = len(calls)
            calls.append(Call(name, file, data, number, number))
        elif (resumed := _RESUMED.match(line)) is not None and resumed[1] in open_calls:
            place = open_calls.pop(resumed[1])
            calls[place] = calls[place]._replace(ended=number)
    return calls


def _bytes(text: str) -> bytes:
    """What strace -xx wrote as \\x61\\x62…"""
    return bytes.fromhex(text.replace("\\x", ""))


def _acknowledged(data: bytes) -> Iterator[int]:
    """Request ids of the SendAck frames in bytes written to a socket."""
    if data.startswith(b"HTTP/1.1"):
        data = data.partition(b"\r\n\r\n")[2]
    while data and (header := read_header(data)) is not None:
        end = header.header_bytes + header.payload_bytes
        if header.opcode == 2:
            frame = codec.decode_server_frame(data[header.header_bytes : end])
            if isinstance(frame, SendAck):
                yield frame.id
        data = data[end:]


async def _load(node: NodeProcess) -> dict[int, bytes]:
    """Send under the eyes of strace; the marks that were sent, by request id."""
    marks = {}
    async with connected(node, "alice") as alice, connected(node, "bob"):
        command = CreateConversation(1, ConversationKind.DIRECT, ["bob"], "new")
        where = (await alice.ask(command, ConversationReply)).conversation.conversation_id
        for first in range(1000, 1000 + SENDS, WINDOW):
            frames = b""  # in one write, so that the node reads several at once, however both are scheduled
            for number in range(first, first + WINDOW):
                marks[number] = f"mark-{number}-of-the-trace".encode()
                send = codec.encode_msgpack(Send(number, where, f"m{number}", marks[number].decode()))
                frames += encode_masked_frame(Opcode.BINARY, send, b"mask")
            await alice.send_bytes(frames)
            for number in range(first, first + WINDOW):
                await alice.reply(number, SendAck)
    return marks


async def test_no_acknowledgement_leaves_before_its_fdatasync_returned(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    prefix = (
        _strace(),
        "-f",
        "-y",
        "-xx",
        "-s",
        "70000",
        "-e",
        f"trace={TRACED}",
        "-e",
        "signal=none",
        "-o",
        str(trace),
    )
    with NodeProcess(tmp_path / "data", prefix=prefix) as node:
        with trio.fail_after(240):
            marks = await _load(node)
        (traced,) = psutil.Process(node.pid).children()
        traced.terminate()
        assert await trio.to_thread.run_sync(node.wait) == 0
    calls = _calls(trace)
    written = [call for call in calls if call.file.endswith("-wal") and call.name.startswith("pwrite")]
    synced = [call for call in calls if call.file.endswith("-wal") and call.name in ("fdatasync", "fsync")]
    answered = {number: call for call in calls if call.file.startswith("socket:")
                for number in _acknowledged(call.data)}  # fmt: skip
    assert marks.keys() <= answered.keys()
    for number, mark in marks.items():
        write = next(call for call in written if mark in call.data)
        covering = min((call.ended for call in synced if call.began > write.ended), default=None)
        assert covering is not None, mark
        assert covering < answered[number].began, f"send {number} was acknowledged before its log was on the disk"
    # Sends that came together were made durable together: fewer syncs than sends.
    assert len(synced) < SENDS
