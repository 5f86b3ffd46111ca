from pathlib import Path

from bench.torture.attempts import Attempts
from gateway.check.history import Record, parse
from gateway.check.recorder import Recorder
from protocol.frames import Send


def attempts(recorder: Recorder) -> Attempts:
    def make(request_id: int, attempt: int) -> Send:
        return Send(request_id, "c", "name", "body", None, attempt)

    return Attempts(recorder, "alice-d1", "send", make, user="alice", conversation="c", client_msg_id="name")


def told(path: Path) -> list[Record]:
    return parse(path.read_bytes().splitlines())


def test_each_attempt_is_a_call_and_only_the_last_has_an_answer(tmp_path: Path) -> None:
    with Recorder(tmp_path / "history") as recorder:
        sent = attempts(recorder)
        assert sent.command(0, 1) == Send(0, "c", "name", "body", None, 1)
        sent.command(7, 1)
        sent.command(0, 2)
        assert sent.command(9, 2) == Send(9, "c", "name", "body", None, 2)
        sent.end("ok", seq=3, duplicate=True)
    first, unknown, second, answer = told(tmp_path / "history")
    assert (first.type, first.attempt, second.type, second.attempt) == ("invoke", 1, "invoke", 2)
    assert (unknown.type, unknown.call) == ("info", first.call)
    assert (answer.type, answer.call, answer.seq, answer.duplicate) == ("ok", second.call, 3, True)


def test_a_command_that_was_never_made_leaves_no_trace(tmp_path: Path) -> None:
    with Recorder(tmp_path / "history") as recorder:
        attempts(recorder).end("info", error="no connection in time")
    assert (tmp_path / "history").read_bytes() == b""
