"""Good histories that are easily mistaken for bad: none of them is a breach."""

from gateway.check.checker import check
from gateway.check.history import SeenEntry
from tests.gateway.check.histories import (
    FIRST,
    A,
    B,
    again,
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


def test_own_sends_are_no_skip_on_the_connection_that_sent_them() -> None:
    history = chat()
    history.push(B, FIRST)
    history.send(A, "m", 2)
    history.push(B, message(2, A, "m"))
    call = history.invoke("send", B, user=B, conversation="c", client_msg_id="n", payload="p-n", connection="bob-1")
    history.push(A, message(3, B, "n"))
    history.send(A, "o", 4)
    history.push(B, message(4, A, "o"))
    history.record("info", "send", B, call=call)
    history.read(A, FIRST, message(2, A, "m"), message(3, B, "n"), message(4, A, "o"), final=True)
    expect(history)


def test_a_repeated_push_and_a_duplicate_answer_are_no_breach() -> None:
    history = chat()
    history.push(B, FIRST)
    history.send(A, "m", None, end="info")
    history.push(B, message(2, A, "m"))
    history.send(A, "n", 3)
    history.push(B, message(3, A, "n"))
    call = history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m", attempt=2)
    history.push(B, message(2, A, "m"))
    history.record("ok", "send", A, call=call, seq=2, duplicate=True, connection="alice-1")
    history.read(B, FIRST, message(2, A, "m"), message(3, A, "n"), final=True)
    expect(history)


def test_who_was_removed_while_resuming_may_have_missed_what_was_lost_on_the_way() -> None:
    history = chat()
    history.push(B, FIRST)
    history.send(A, "m", 2)
    call = history.invoke("resume", B, connection="bob-1", conversation="c", cursor=1)
    history.change("remove", A, "out", 3, B)
    history.push(B, SeenEntry(3, A, "out", kind="removed", users=(B,)))
    history.record("info", "resume", B, call=call)
    history.record("info", "quiet", "harness")
    expect(history)


def test_what_was_pushed_while_a_resume_came_to_nothing_is_there() -> None:
    history = chat()
    history.push(B, FIRST)
    call = history.invoke("resume", B, connection="bob-1", conversation="c", cursor=1)
    for seq, name in ((2, "m"), (3, "n")):
        history.send(A, name, seq)
        history.push(B, message(seq, A, name))
    history.record("info", "resume", B, call=call)
    history.change("remove", A, "out", 4, B)
    history.push(B, SeenEntry(4, A, "out", kind="removed", users=(B,)))
    expect(history)


def test_a_removed_member_that_comes_back_misses_what_lies_between() -> None:
    history = chat()
    history.push(B, FIRST)
    history.change("remove", A, "out", 2, B)
    history.push(B, SeenEntry(2, A, "out", kind="removed", users=(B,)))
    history.send(A, "m", 3)
    history.change("add", A, "in", 4, B)
    history.push(B, SeenEntry(4, A, "in", kind="added", users=(B,)))
    history.read(B, FIRST, SeenEntry(2, A, "out", kind="removed", users=(B,)), message(3, A, "m"),
                 SeenEntry(4, A, "in", kind="added", users=(B,)), final=True)  # fmt: skip
    history.record("info", "quiet", "harness")
    expect(history)


def test_who_is_told_again_of_the_stays_in_a_channel_has_skipped_nothing() -> None:
    history = told_again_of_stays()
    history.in_channel()
    expect(history)


def test_a_resume_with_pushes_before_its_answer_is_whole() -> None:
    history = chat()
    for seq, name in ((2, "m"), (3, "n"), (4, "o")):
        history.send(A, name, seq)
    history.record("ok", "connect", B, user=B, connection="bob-2")
    call = history.invoke("resume", B, user=B, connection="bob-2", conversation="c", cursor=1)
    page = history.invoke("read", B, user=B, connection="bob-2", conversation="c")
    history.push(B, message(4, A, "o"), "bob-2")
    entries = (message(2, A, "m"), message(3, A, "n"))
    history.record("ok", "read", B, call=page, entries=entries, first_seq=2, last_seq=3, head_seq=3)
    history.record("ok", "resume", B, call=call, head_seq=3)
    report = check(history.parsed())
    assert report.ok, report.as_text()
    assert report.sometimes["resume-with-news"] == 1


def test_a_send_of_unknown_outcome_may_be_there_or_not() -> None:
    for entries in ((FIRST,), (FIRST, message(2, A, "m"))):
        history = chat()
        history.send(A, "m", None, end="info")
        history.read(B, *entries, final=True)
        expect(history)


def test_an_old_entry_pushed_again_to_somebody_who_just_came_proves_nothing() -> None:
    history = chat()
    three(history)
    history.record("ok", "connect", B, user=B, connection="bob-2")
    again(history)
    history.send(A, "p", 5)
    history.push(B, message(5, A, "p"), "bob-2")
    expect(history)


def test_an_old_entry_pushed_again_while_resuming_is_no_skip() -> None:
    history = chat()
    three(history)
    call = resuming(history)
    again(history)
    synced(history, call, 2, 4, message(2, A, "m"), message(3, A, "n"), message(4, A, "o"))
    history.send(A, "p", 5)
    history.push(B, message(5, A, "p"), "bob-2")
    expect(history)


def test_buckets_that_follow_each_other_from_page_to_page_have_no_gap() -> None:
    history = chat()
    history.send(A, "m", 2)
    history.send(A, "n", 3)
    history.page(B, message(3, A, "n", bucket=1))
    history.page(B, FIRST, message(2, A, "m", bucket=0), head=3)
    history.read(B, FIRST, message(2, A, "m", bucket=0), message(3, A, "n", bucket=1), final=True)
    report = check(history.parsed())
    assert report.ok, report.as_text()
    assert report.sometimes["new-bucket"] == 1


def test_resources_that_are_back_and_entries_that_arrived_are_no_leak() -> None:
    history = chat()
    history.record("info", "resources", "node-1", phase="before", resources={"tasks": 12, "descriptors": 30})
    call = history.invoke("send", A, user=A, conversation="c", client_msg_id="m", payload="p-m", connection="alice-1")
    history.record("info", "disconnect", B, connection="bob-1")
    resume(history, 1, 1)
    history.record("ok", "send", A, call=call, seq=2)
    history.push(B, message(2, A, "m"), "bob-2")
    history.record("info", "quiet", "harness")
    history.record("info", "resources", "node-1", phase="after", resources={"tasks": 12, "descriptors": 29})
    expect(history)


def test_resources_without_a_number_from_before_are_not_judged() -> None:
    history = chat()
    history.record("info", "resources", "node-1", phase="after", resources={"tasks": 13})
    report = check(history.parsed())
    assert report.ok, report.as_text()
    assert report.judged["leak"] == 0


def test_what_was_on_its_way_to_a_member_may_arrive_behind_the_removal() -> None:
    history = chat()
    history.push(B, FIRST)
    history.send(A, "m", 2)
    history.change("remove", A, "out", 3, B)
    history.push(B, message(2, A, "m"))
    history.push(B, SeenEntry(3, A, "out", kind="removed", users=(B,)))
    expect(history)


def test_a_removal_told_again_and_an_old_entry_after_the_return_leak_nothing() -> None:
    history = removed_and_quiet()
    history.push(B, SeenEntry(3, A, "out", kind="removed", users=(B,)))
    history.change("add", A, "in", 4, B)
    history.push(B, SeenEntry(4, A, "in", kind="added", users=(B,)))
    history.push(B, message(2, A, "m"))
    history.record("info", "quiet", "harness")
    expect(history)


def test_owners_that_follow_each_other_are_no_split_brain() -> None:
    history = chat()
    for process, epoch in (("node-1:a", 1), ("node-1:a", 1), ("node-2:b", 2), ("node-1:c", 3)):
        history.record("ok", "speak", process, conversation="c", epoch=epoch)
    history.record("ok", "speak", "node-2:b", conversation="d", epoch=1)
    history.record("ok", "commit", "node-2:b", conversation="c", epoch=2, note="written late: it was paused")
    report = check(history.parsed())
    assert report.ok, report.as_text()
    assert report.judged["split-brain"] == 6
    assert report.sometimes["takeover"] == 2


def test_a_device_needs_not_be_given_what_it_sent_itself_on_whatever_connection() -> None:
    history = chat()
    history.push(B, FIRST)
    history.record("ok", "connect", A, user=A, connection="alice-2")
    history.send(A, "m", 2, connection="")
    history.push(B, message(2, A, "m"))
    history.record("info", "quiet", "harness")
    expect(history)
