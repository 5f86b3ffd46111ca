"""A real node whose disk takes no more for a while: what it acknowledged is there, what it refused is not."""

import json
import resource
from pathlib import Path

import pytest
import trio

from bench.processes import NodeProcess
from protocol.codec import decode_entry
from protocol.errors import ErrorCode
from protocol.frames import ErrorReply, History, HistoryPage, Send, SendAck
from tests.process.wire import Wire, ask, connected, upgrade_request

pytestmark = pytest.mark.process

DEADLINE_S = 240
ROOM_BYTES = 20_000
BODY = "x" * 3_500
READY = b"GET /health/ready HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n"


def let_files_grow_to(node: NodeProcess, limit: int) -> None:
    """The kernel refuses to let any file of the node grow beyond that (EFBIG), as a full disk does (ENOSPC)."""
    _, hard = resource.prlimit(node.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (limit, hard))


async def stored(wire: Wire, conversation: str) -> list[tuple[int, str]]:
    page = await wire.ask(History(0, conversation, limit=100), HistoryPage)
    entries = [decode_entry(bytes(raw)) for raw in page.entries]
    return [(entry.seq, entry.client_msg_id) for entry in entries[1:]]


async def test_a_disk_that_takes_no_more_is_told_and_heals(tmp_path: Path) -> None:
    wal = tmp_path / "data" / "tidegate.db-wal"
    with NodeProcess(tmp_path / "data", "--commands-per-s-max", "0", "--log-format", "json") as node:
        acknowledged: list[tuple[int, str]] = []
        with trio.fail_after(DEADLINE_S):
            async with connected(node, "alice") as alice:
                conversation = await alice.create_direct("bob")
                let_files_grow_to(node, wal.stat().st_size + ROOM_BYTES)
                refused = ""
                while not refused:
                    name = f"m{len(acknowledged)}"
                    request_id = alice.next_id()
                    await alice.send(Send(request_id, conversation, name, BODY))
                    answer = await alice.reply(request_id, SendAck | ErrorReply)
                    if isinstance(answer, SendAck):
                        acknowledged.append((answer.seq, name))
                        continue
                    refused = name
                    assert answer.code == ErrorCode.UNAVAILABLE
                    assert "nothing was stored" in answer.message
                let_files_grow_to(node, 0)  # what is small would still have fitted
                request_id = alice.next_id()
                await alice.send(Send(request_id, conversation, refused, BODY))
                assert (await alice.reply(request_id, ErrorReply)).code == ErrorCode.UNAVAILABLE
                assert await stored(alice, conversation) == acknowledged, "reading goes on"
                # Its log is on that disk, too, and strangers have it written.
                assert (await ask(node, upgrade_request({"Authorization": "Bearer none"}))).status == 401
                health = await ask(node, READY)
                assert health.status == 503
                [check] = [each for each in json.loads(health.rest)["checks"] if each["name"] == "store"]
                assert not check["ok"]
                assert check["detail"]
                let_files_grow_to(node, resource.RLIM_INFINITY)
                while (await ask(node, READY)).status != 200:
                    pass
                again = await alice.ask(Send(0, conversation, refused, BODY, None, 2), SendAck)
                assert (again.seq, again.duplicate) == (len(acknowledged) + 2, False)
                acknowledged.append((again.seq, refused))
            await trio.to_thread.run_sync(node.restart)
            async with connected(node, "alice") as alice:
                assert await stored(alice, conversation) == acknowledged
        log = node.stderr_path.read_text()
        assert "store in trouble" in log
        assert "Traceback" not in log
