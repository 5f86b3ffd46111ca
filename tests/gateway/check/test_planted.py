"""One bad history per invariant, each named by exactly that breach; and more ways to break the same promises."""

from collections.abc import Callable

import pytest

from gateway.check.checker import check
from gateway.check.history import SeenEntry
from gateway.check.report import INVARIANTS
from tests.gateway.check.histories import (
    FIRST,
    A,
    B,
    Builder,
    C,
    chat,
    expect,
    message,
    removed_and_quiet,
    resume,
    resuming,
    synced,
    three,
    told_again_of_stays,
)


def lost_write(history: Builder) -> None:
    history.send(A, "m", 2)
    history.read(B, FIRST, final=True)


def duplicate(history: Builder) -> None:
    history.send(A, "m", 2)
    history.send(A, "m", 3, attempt=2)
    history.read(B, FIRST, message(2, A, "m"), message(3, A, "m"), final=True)


def inconsistent(history: Builder) -> None:
    history.send(A, "m", 2)
    history.push(B, SeenEntry(2, A, "m", "another payload"))


def nonmonotonic_send(history: Builder) -> None:
    fields = {"user": A, "conversation": "c", "connection": "alice-1"}
    first = history.invoke("send", A, client_msg_id="m", **fields)
    second = history.invoke("send", A, client_msg_id="n", **fields)
    history.record("ok", "send", A, call=second, seq=3)
    history.record("ok", "send", A, call=first, seq=2)


def poll_skip(history: Builder) -> None:
    for seq, name in ((2, "m"), (3, "n"), (4, "o")):
        history.send(A, name, seq)
    history.push(B, FIRST)
    history.push(B, message(2, A, "m"))
    history.push(B, message(4, A, "o"))


def late_arrival(history: Builder) -> None:
    call = history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m")
    history.send(B, "n", 3)
    history.read(B, FIRST, message(3, B, "n"))
    history.record("ok", "send", A, call=call, seq=2)
    history.read(B, FIRST, message(2, A, "m"), message(3, B, "n"), final=True)


def stale_read(history: Builder) -> None:
    history.send(A, "m", 2)
    history.read(B, FIRST, message(2, A, "m"))
    history.read(B, FIRST)


def phantom(history: Builder) -> None:
    history.send(A, "m", None, end="fail", error="TOO_LONG")
    history.push(B, message(2, A, "m"))


def realtime(history: Builder) -> None:
    history.send(A, "m", 3, connection="")
    history.send(B, "n", 2, connection="")


def split_brain(history: Builder) -> None:
    history.send(A, "m", 2, epoch=1)
    history.record("ok", "commit", "node-2", conversation="c", epoch=2)
    history.send(A, "n", 3, epoch=1)


def bucket_gap(history: Builder) -> None:
    history.send(A, "m", 2)
    history.send(A, "n", 4, connection="")
    history.read(B, FIRST, message(2, A, "m", bucket=0), message(4, A, "n", bucket=1), final=True)


def leak(history: Builder) -> None:
    history.record("info", "resources", "node-1", phase="before", resources={"tasks": 12, "descriptors": 30})
    history.record("info", "resources", "node-1", phase="after", resources={"tasks": 13, "descriptors": 30})


def leak_to_outsider(history: Builder) -> None:
    history.change("remove", A, "out", 2, B)
    history.send(A, "m", 3)
    history.push(B, message(3, A, "m"))


PLANTED: dict[str, Callable[[Builder], None]] = {
    "lost-write": lost_write,
    "duplicate": duplicate,
    "inconsistent": inconsistent,
    "nonmonotonic-send": nonmonotonic_send,
    "poll-skip": poll_skip,
    "late-arrival": late_arrival,
    "stale-read": stale_read,
    "phantom": phantom,
    "realtime": realtime,
    "split-brain": split_brain,
    "bucket-gap": bucket_gap,
    "leak": leak,
    "leak-to-outsider": leak_to_outsider,
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_breach_is_named_and_nothing_else_is(name: str) -> None:
    history = chat()
    PLANTED[name](history)
    report = check(history.parsed())
    assert report.names() == {name}, report.as_text()
    assert report.judged[name] > 0


def test_every_invariant_has_a_planted_history() -> None:
    assert set(PLANTED) == {invariant.breach for invariant in INVARIANTS}


# --- more ways to break the same promises -----------------------------------------------------------------------------


def test_an_application_handed_the_same_entry_twice_is_a_poll_skip() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.deliver(B, message(2, A, "m"))
    history.deliver(B, message(2, A, "m"))
    expect(history, "poll-skip")


def test_an_application_not_handed_an_entry_is_a_poll_skip() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.send(A, "n", 3)
    history.deliver(B, FIRST)
    history.deliver(B, message(3, A, "n"))
    expect(history, "poll-skip")


def test_a_resume_that_leaves_out_an_entry_is_a_poll_skip() -> None:
    history = chat()
    for seq, name in ((2, "m"), (3, "n"), (4, "o")):
        history.send(A, name, seq)
    resume(history, 1, 4, message(3, A, "n"), message(4, A, "o"))
    expect(history, "poll-skip")


def test_a_push_that_does_not_follow_on_a_resume_is_a_poll_skip() -> None:
    history = chat()
    for seq, name in ((2, "m"), (3, "n"), (4, "o")):
        history.send(A, name, seq)
    resume(history, 1, 2, message(2, A, "m"))
    history.push(B, message(4, A, "o"), "bob-2")
    expect(history, "poll-skip")


def test_an_entry_nobody_sent_is_a_phantom() -> None:
    history = chat()
    history.push(B, message(2, A, "invented"))
    expect(history, "phantom")


def test_an_entry_seen_before_it_was_sent_is_a_phantom() -> None:
    history = chat()
    history.push(B, message(2, A, "m"))
    history.send(A, "m", 2)
    expect(history, "phantom")


def test_an_acknowledgement_of_anothers_seq_is_inconsistent() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.push(B, message(2, A, "m"))
    history.send(B, "n", 2)
    assert "inconsistent" in check(history.parsed()).names()


def test_a_new_entry_below_one_that_was_only_seen_is_a_late_arrival() -> None:
    history = chat()
    history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m")
    history.push(B, message(3, A, "m"))
    history.send(B, "n", 2, connection="")
    expect(history, "late-arrival")


def test_a_sender_that_cannot_read_its_own_entry_has_a_stale_read() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.read(A, FIRST)
    expect(history, "stale-read")


def test_a_read_out_of_order_is_a_stale_read() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.read(B, message(2, A, "m"), FIRST)
    expect(history, "stale-read")


def test_an_entry_pushed_and_then_gone_for_good_is_a_stale_read() -> None:
    history = chat()
    history.send(A, "m", None, end="info")
    history.push(B, message(2, A, "m"))
    history.read(A, FIRST, final=True)
    expect(history, "stale-read")


def test_an_old_epoch_behind_a_new_one_in_the_log_is_a_split_brain() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.send(A, "n", 3)
    history.read(B, FIRST, message(2, A, "m", epoch=2), message(3, A, "n", epoch=1))
    expect(history, "split-brain")


def test_an_owner_that_speaks_behind_its_successor_is_a_split_brain() -> None:
    history = chat()
    for process, epoch in (("node-1:a", 1), ("node-2:b", 2), ("node-1:a", 1)):
        history.record("ok", "speak", process, conversation="c", epoch=epoch)
    expect(history, "split-brain")


def test_two_nodes_that_speak_under_one_epoch_are_a_split_brain() -> None:
    history = chat()
    for process in ("node-1:a", "node-2:b"):
        history.record("ok", "speak", process, conversation="c", epoch=1)
    expect(history, "split-brain")


def test_buckets_that_go_back_are_a_bucket_gap() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.send(A, "n", 3)
    history.read(B, FIRST, message(2, A, "m", bucket=1), message(3, A, "n", bucket=0))
    expect(history, "bucket-gap")


def test_buckets_that_go_back_from_page_to_page_are_a_bucket_gap() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.send(A, "n", 3)
    history.page(B, message(2, A, "m", bucket=1))
    history.page(B, message(3, A, "n", bucket=0))
    expect(history, "bucket-gap")


def test_an_entry_in_two_buckets_is_a_bucket_gap() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.page(A, message(2, A, "m", bucket=0))
    history.page(B, message(2, A, "m", bucket=1))
    expect(history, "bucket-gap")


def test_a_final_read_that_ends_with_a_bucket_is_a_bucket_gap() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.read(B, FIRST, message(2, A, "m", bucket=0), head=3, final=True)
    expect(history, "bucket-gap")


def test_an_entry_that_came_neither_with_the_resume_nor_after_it_is_a_leak() -> None:
    history = chat()
    call = history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m", connection="alice-1")
    resume(history, 1, 1)
    history.record("info", "disconnect", B, connection="bob-1")
    history.record("ok", "send", A, call=call, seq=2)
    history.record("info", "quiet", "harness")
    expect(history, "leak")


def test_an_entry_that_never_reached_a_connected_member_is_a_leak() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.push(B, FIRST)
    history.record("info", "quiet", "harness")
    expect(history, "leak")


def test_in_a_group_nobody_is_told_again_of_stays() -> None:
    expect(told_again_of_stays(), "poll-skip", "leak-to-outsider")


def test_a_push_to_somebody_never_in_the_conversation_is_a_leak_to_an_outsider() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.push(C, message(2, A, "m"))
    expect(history, "leak-to-outsider")


def test_a_read_after_the_removal_was_acknowledged_is_a_leak_to_an_outsider() -> None:
    history = chat()
    history.change("remove", A, "out", 2, B)
    history.read(B, FIRST, SeenEntry(2, A, "out", kind="removed", users=(B,)))
    expect(history, "leak-to-outsider")


def test_an_old_entry_pushed_to_a_former_member_when_all_was_quiet_is_a_leak_to_an_outsider() -> None:
    history = removed_and_quiet()
    history.push(B, message(2, A, "m"))
    expect(history, "leak-to-outsider")


def test_a_send_of_a_former_member_that_is_acknowledged_is_a_leak_to_an_outsider() -> None:
    history = chat()
    history.change("remove", A, "out", 2, B)
    history.send(B, "m", 3)
    expect(history, "leak-to-outsider")


def test_an_entry_that_fell_between_a_sync_and_the_pushes_is_a_poll_skip() -> None:
    history = chat()
    three(history)
    call = resuming(history)
    history.push(B, message(4, A, "o"), "bob-2")
    synced(history, call, 2, 2, message(2, A, "m"))
    assert "poll-skip" in check(history.parsed()).names()
