"""Sends: order, durability before delivery, acknowledgement."""

from trio.testing import wait_all_tasks_blocked

from gateway.broker import Delivery
from protocol.frames import SendAck
from tests.fakes.edge import Replied


async def test_send_is_stored_then_delivered_then_acknowledged(world, alice):
    conversation_id = await world.direct(alice, "bob")
    world.store.held = True
    command = world.send(alice, conversation_id, "m1")
    await wait_all_tasks_blocked()
    assert world.edge.log == []
    world.store.release()
    await wait_all_tasks_blocked()
    delivery, replied = world.edge.log
    assert isinstance(delivery, Delivery)
    assert sorted(delivery.recipients) == ["alice", "bob"]
    assert delivery.origins == [alice]
    assert replied == Replied(alice, SendAck(command.id, 2, world.now_us + 1), conversation_id)
    assert world.edge.entries[0].body == "m1"
    assert world.store.logs[conversation_id].entries[1] == delivery.entries[0]
