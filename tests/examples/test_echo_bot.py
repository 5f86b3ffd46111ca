import random

import trio

from examples.echo_bot import echo
from protocol.errors import ErrorCode
from protocol.frames import EntryKind, ErrorReply, MarkReceipt, Send
from tests.fakes.node import FakeConnection, FakeNode


async def test_it_answers_each_message_once_also_across_a_reconnect(autojump_clock) -> None:
    async with trio.open_nursery() as nursery:
        node = FakeNode(nursery)
        node.user = "echo"
        nursery.start_soon(lambda: echo("ws://node", "t", opener=node.opener, rng=random.Random(1)))
        await node.connected()
        await trio.sleep(1)
        await node.say("c", "hello")
        await trio.sleep(1)
        await node.connection.close(1012)
        node.append("c", "said while away")
        await node.connected(2)
        await trio.sleep(1)
        await node.say("c", "from my other device", sender="echo")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    said = [(entry.sender, entry.body) for entry in node.logs["c"] if entry.kind == EntryKind.MESSAGE]
    assert said == [
        ("bob", "hello"),
        ("echo", "hello"),
        ("bob", "said while away"),
        ("echo", "said while away"),
        ("echo", "from my other device"),
    ]
    assert [c.read_seq for c in node.received if isinstance(c, MarkReceipt) and c.read_seq] == [1, 3]


async def test_it_outlives_a_removal_and_a_receipt_that_is_not_answered(autojump_clock, capsys) -> None:
    async def removed(connection: FakeConnection, command: Send) -> bool:
        if command.conversation_id == "c":
            return False
        await connection.put(ErrorReply(command.id, ErrorCode.NOT_FOUND, "no such conversation"))
        return True

    async def silent(connection: FakeConnection, command: MarkReceipt) -> bool:
        return True

    async with trio.open_nursery() as nursery:
        node = FakeNode(nursery)
        node.user = "echo"
        node.scripts[Send], node.scripts[MarkReceipt] = removed, silent
        nursery.start_soon(lambda: echo("ws://node", "t", opener=node.opener, rng=random.Random(1)))
        await node.connected()
        await trio.sleep(1)
        for name in ("gone", "c", "c"):
            await node.say(name, "hello")
            await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert [entry.sender for entry in node.logs["c"]] == ["bob", "echo"] * 2
    told = capsys.readouterr().err
    assert "gone: NOT_FOUND" in told
    assert "c: no answer" in told
