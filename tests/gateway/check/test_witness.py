"""What a node writes down about its own speaking, and what a check makes of it."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.check.checker import check
from gateway.check.history import Record, parse
from gateway.check.witness import HistoryUnwritable, Witness, witnessed
from gateway.cli.errors import USAGE
from gateway.cli.serve import explain
from gateway.config import Settings


class Slots:
    """An ownership that is told what it owns."""

    def __init__(self, epoch: int = 0) -> None:
        self.owned = epoch

    def epoch(self, conversation_id: str) -> int | None:
        return self.owned or None

    def may_speak(self, conversation_id: str, epoch: int) -> bool:
        return self.owned == epoch


class Clock:
    """Every look at it is a nanosecond later."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


def _records(path: Path) -> list[Record]:
    with path.open("rb") as file:
        return parse(file)


def test_only_permissions_are_recorded_with_the_time_at_which_they_were_asked_for(tmp_path: Path) -> None:
    slots, clock, path = Slots(3), Clock(), tmp_path / "history.jsonl"
    witness = Witness(slots, "node-1:a", path, clock)
    assert witness.epoch("c") == 3
    assert witness.may_speak("c", 3)
    assert not witness.may_speak("c", 2)
    slots.owned = 0
    assert witness.epoch("c") is None
    assert not witness.may_speak("c", 3)
    (record,) = _records(path)
    assert (record.time, record.op, record.process, record.conversation, record.epoch) == (
        1,
        "speak",
        "node-1:a",
        "c",
        3,
    )


def test_two_nodes_that_take_turns_share_a_file_and_are_no_split_brain(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "history.jsonl"
    one, other = Slots(1), Slots()
    witnesses = Witness(one, "node-1:a", path, clock), Witness(other, "node-2:b", path, clock)
    for _ in range(3):
        assert sum(witness.may_speak("c", epoch) for witness, epoch in zip(witnesses, (1, 2), strict=True)) == 1
        one.owned, other.owned = 0, 2
    report = check(_records(path))
    assert report.ok, report.as_text()
    assert report.judged["split-brain"] == 3
    assert report.sometimes["takeover"] == 1


def test_an_owner_that_does_not_notice_its_successor_is_a_split_brain(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "history.jsonl"
    witnesses = Witness(Slots(1), "node-1:a", path, clock), Witness(Slots(2), "node-2:b", path, clock)
    for witness, epoch in ((witnesses[0], 1), (witnesses[1], 2), (witnesses[0], 1)):
        assert witness.may_speak("c", epoch)
    report = check(_records(path))
    assert report.names() == {"split-brain"}
    assert report.breaches[0].what == "node-1:a spoke under epoch 1 after epoch 2 began"


def test_a_file_that_cannot_be_written_is_said_at_once_and_to_the_operator(tmp_path: Path) -> None:
    with pytest.raises(HistoryUnwritable) as caught:
        witnessed(Slots(1), "node-1:a", str(tmp_path / "nowhere" / "history.jsonl"))
    explained = explain(caught.value, Settings())
    assert explained is not None
    assert explained.exit_code == USAGE
    assert "history.jsonl cannot be written (No such file or directory); allowed: a file in" in explained.message


def test_without_a_file_nothing_stands_between_owner_and_ownership() -> None:
    slots = Slots(1)
    assert witnessed(slots, "node-1:a", "") is slots


def test_a_file_that_fails_later_is_said_once_and_does_not_silence_the_node(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    witness = Witness(Slots(1), "node-1:a", path)
    path.unlink()
    path.mkdir()
    with capture_logs() as logs:
        assert witness.may_speak("c", 1)
        assert witness.may_speak("c", 1)
    assert [entry["event"] for entry in logs] == ["history not written; nothing more is recorded"]
