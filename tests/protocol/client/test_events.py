import trio
from trio.testing import wait_all_tasks_blocked

from protocol.client.events import EventQueue, MessageReceived, Resumed, TypingChanged, entry_event
from protocol.frames import Entry, EntryKind


def message(seq: int, conversation_id: str = "c") -> MessageReceived:
    return MessageReceived(conversation_id, seq, 0, "bob", f"m{seq}", "body")


async def test_events_come_in_order_and_end() -> None:
    queue = EventQueue(10, 10)
    queue.put_entry(message(1))
    queue.put_control(Resumed(True))
    queue.close()
    assert await queue.get() == message(1)
    assert await queue.get() == Resumed(True)
    assert await queue.get() is None


async def test_what_may_be_shed_is_shed_when_full_and_counted() -> None:
    queue = EventQueue(1, 10)
    queue.put_entry(message(1))
    queue.put_or_shed(TypingChanged("c", "bob", True))
    assert queue.shed == 1
    assert queue.full
    await queue.get()
    queue.put_or_shed(TypingChanged("c", "bob", False))
    assert await queue.get() == TypingChanged("c", "bob", False)


async def test_of_too_many_control_events_the_newest_stay_and_entries_all() -> None:
    queue = EventQueue(10, 10)
    queue.put_entry(message(1))
    for n in range(queue.CONTROL_EVENTS_MAX + 3):
        queue.put_control(Resumed(n % 2 == 0))
    got = []
    queue.close()
    while (event := await queue.get()) is not None:
        got.append(event)
    assert got[0] == message(1)
    assert len(got) == 1 + queue.CONTROL_EVENTS_MAX
    assert queue.shed == 3


async def test_a_cancelled_get_loses_nothing() -> None:
    queue = EventQueue(10, 10)
    queue.put_entry(message(1))
    with trio.CancelScope() as scope:
        scope.cancel()
        await queue.get()
    assert scope.cancelled_caught
    assert await queue.get() == message(1)


async def test_waiting_for_room() -> None:
    queue = EventQueue(4, 10)
    for seq in range(1, 5):
        queue.put_entry(message(seq))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.wait_half_empty)
        await wait_all_tasks_blocked()
        await queue.get()
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        await queue.get()


async def test_two_who_wait_for_room_are_both_woken() -> None:
    queue = EventQueue(2, 10)
    queue.put_entry(message(1))
    queue.put_entry(message(2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.wait_half_empty)
        nursery.start_soon(queue.wait_half_empty)
        await wait_all_tasks_blocked()
        await queue.get()
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks


async def test_the_event_in_hand_is_not_dealt_with_until_the_next_is_asked_for() -> None:
    queue = EventQueue(10, 10)
    for seq in (5, 6):
        queue.put_entry(message(seq))
    queue.put_entry(message(9, "d"))
    assert queue.not_dealt_with() == {"c": 5, "d": 9}
    await queue.get()
    assert queue.not_dealt_with() == {"c": 5, "d": 9}
    await queue.get()
    assert queue.not_dealt_with() == {"c": 6, "d": 9}
    await queue.get()
    queue.deal_with_last()
    assert queue.not_dealt_with() == {}


def test_every_kind_of_entry_has_its_event_and_unknown_ones_too() -> None:
    names = [type(entry_event("c", Entry(1, kind, 0, "bob", "m", users=["x"]))).__name__ for kind in EntryKind]
    assert names == [
        "MessageReceived", "ConversationCreated", "MembersAdded", "MembersRemoved", "ConversationRenamed"
    ]  # fmt: skip
    assert type(entry_event("c", Entry(1, 99, 0, "bob", "m"))).__name__ == "OtherEntry"
