"""The file format: what is refused, and where the fault is said to be."""

from pathlib import Path

import pytest

from gateway.check.checker import check
from gateway.check.history import HistoryError, Record, encode, parse
from gateway.check.recorder import Recorder, payload_of

SEND = (
    b'{"time":1,"type":"invoke","op":"send","process":"a","call":1,"user":"a","conversation":"c","client_msg_id":"m"}\n'
)


@pytest.mark.parametrize(
    ("lines", "line", "said"),
    [
        ([], 1, "no record at all"),
        ([b"\n", b"  \n"], 1, "no record at all"),
        ([SEND, b"hello\n"], 2, "not a record"),
        ([SEND, b"\xff\xfe\n"], 2, "not a record"),
        ([b"[" * 100_000], 1, "not a record"),
        ([b'{"time":1,"type":"ok","op":"push","process":"a","colour":"red"}'], 1, "colour"),
        ([b'{"time":1,"type":"ok","op":"dance","process":"a"}'], 1, "dance"),
        ([b'{"time":-1,"type":"ok","op":"push","process":"a"}'], 1, "time"),
        ([b'{"time":1,"type":"ok","op":"push","process":"a","user":"a"}'], 1, "needs the field connection"),
        ([b'{"time":1,"type":"fail","op":"push","process":"a"}'], 1, "its type is ok"),
        ([SEND.replace(b',"call":1', b"")], 1, "needs the field call"),
        ([SEND, SEND], 2, "was invoked before"),
        ([SEND, b"\n", b'{"time":2,"type":"ok","op":"send","process":"b","call":1,"seq":2}'], 3, "never invoked"),
        ([SEND, b'{"time":2,"type":"fail","op":"read","process":"a","call":1}'], 2, "was invoked as send"),
        ([SEND, b'{"time":2,"type":"ok","op":"send","process":"a","call":1}'], 2, "needs the field seq"),
    ],
)
def test_what_is_no_history_is_refused_and_the_line_named(lines: list[bytes], line: int, said: str) -> None:
    with pytest.raises(HistoryError) as caught:
        parse(lines)
    assert caught.value.line == line
    assert said in str(caught.value)
    assert f"line {line}:" in str(caught.value)


def test_a_call_ends_once() -> None:
    end = b'{"time":2,"type":"info","op":"send","process":"a","call":1}'
    with pytest.raises(HistoryError, match=r"line 3: .*ended already"):
        parse([SEND, end, end])


def test_records_come_in_the_order_of_time_and_equal_times_as_they_stood() -> None:
    records = [
        Record(time=time, type="info", op="quiet", process=name) for time, name in ((2, "a"), (1, "b"), (1, "c"))
    ]
    assert [record.process for record in parse(encode(record) for record in records)] == ["b", "c", "a"]


def test_a_recorder_writes_what_the_parser_reads(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with Recorder(path) as recorder:
        call = recorder.next_call()
        fields = {"user": "a", "conversation": "c", "client_msg_id": "m", "payload": payload_of("hi")}
        recorder.record("invoke", "send", "a", call=call, **fields)
        recorder.record("ok", "send", "a", call=call, seq=2)
    with path.open("rb") as file:
        invoke, end = parse(file)
    assert (invoke.client_msg_id, invoke.payload, end.seq) == ("m", payload_of("hi"), 2)
    assert invoke.time < end.time


def test_a_payload_tells_bodies_and_metadata_apart() -> None:
    variants = [payload_of("ab"), payload_of("a", {"b": ""}), payload_of("", {"a": "b"}), payload_of("a", {"": "b"})]
    assert len(set(variants)) == len(variants)
    assert payload_of("x", {"a": "1", "b": "2"}) == payload_of("x", {"b": "2", "a": "1"})


def test_the_example_in_the_documentation_is_a_good_history() -> None:
    page = Path(__file__).parents[3] / "docs" / "history.md"
    example = page.read_text(encoding="utf-8").split("```")[1]
    report = check(parse(line.encode() for line in example.strip().splitlines()))
    assert report.ok, report.as_text()
    assert report.judged["lost-write"] == 2
