"""A whole node comes to rest: in time, whatever clients and the store do meanwhile."""

import pytest
import trio

from gateway.auth import Verifier
from gateway.config import Settings
from gateway.edge.listener import listen
from gateway.node import Node
from gateway.owner.members import direct_id
from gateway.upgrade import settling
from gateway.upgrade.channel import HandOverFailed
from gateway.upgrade.settling import Rest
from protocol.frames import ConversationKind, CreateConversation, Send, SendAck
from tests.fakes.memory_store import MemoryStore
from tests.gateway.test_node import SECRET, connect
from tests.gateway.upgrade.test_predecessor import FakeEstate

HEAD = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
PING, PONG = b"\x89\x80\x00\x00\x00\x00", b"\x8a\x00"


async def stand_still(_receipts):
    await trio.sleep_forever()


@pytest.fixture
async def node(nursery):
    chosen = Settings(auth_secret=SECRET, port=0)
    made = Node(chosen, MemoryStore(), Verifier.from_settings(chosen), listen("127.0.0.1", 0))
    await nursery.start(made.run)
    return made


async def test_a_request_whose_head_is_complete_only_then_is_answered_and_its_connection_ends(node, monkeypatch):
    """It was a handshake in progress when HTTP connections were told to end; kept, it would be in the way for 15 s."""
    told = trio.Event()
    finish_open = node.http.finish_open

    async def finish(within_s):
        await finish_open(within_s)
        told.set()

    monkeypatch.setattr(node.http, "finish_open", finish)
    rest = Rest(node, FakeEstate())
    with trio.fail_after(30):
        stream = await trio.open_tcp_stream("127.0.0.1", int(node.address.rpartition(":")[2]))
        await stream.send_all(HEAD)
        while not node.listener.handshakes:
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rest.settle)
            await told.wait()
            await stream.send_all(b"\r\n")
        await rest.wait_until_quiet()
        answer = b"".join([chunk async for chunk in stream])
        assert answer.startswith(b"HTTP/1.1 200 ")
        rest.resume()
        await stream.aclose()


async def test_a_store_that_saves_no_receipts_keeps_clients_waiting_no_longer_than_it_may(node, monkeypatch):
    monkeypatch.setattr(settling, "SETTLE_S", 0.1)
    monkeypatch.setattr(settling, "QUIET_TIMEOUT_S", 0.1)
    monkeypatch.setattr(node.store, "save_receipts", stand_still)
    where = direct_id("alice", "bob")
    await node.call("alice", CreateConversation(1, ConversationKind.DIRECT, ["bob"], "direct"))
    assert isinstance(await node.call("alice", Send(2, where, "one", "text")), SendAck)  # who has now read it, too
    assert not node.owner.idle
    rest = Rest(node, FakeEstate())
    stream = await connect(node, "alice")
    with trio.fail_after(30):
        await rest.settle()
        with pytest.raises(HandOverFailed, match="commands that wait for the store took longer"):
            await rest.wait_until_quiet()
        rest.resume()
        await stream.send_all(PING)
        assert await stream.receive_some() == PONG
        await stream.aclose()
