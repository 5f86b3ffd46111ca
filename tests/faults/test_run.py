"""What a seed decides, and how a history is judged; no cluster runs here."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from bench.torture.run import CALM_S, FAULTS_MAX, LOST_S, calm, judge, look_for_long_waits, plan
from bench.torture.scenarios import ACK_MAX_S, FAULTS
from bench.torture.trial import Trial
from gateway.check.recorder import Recorder

NAMES = list(FAULTS)


def test_a_seed_always_makes_the_same_choices() -> None:
    for seed in range(50):
        (chosen, rng), (again, same) = plan(seed, NAMES), plan(seed, NAMES[::-1])
        assert chosen == again
        assert rng.random() == same.random()
        assert 1 <= len(chosen) <= FAULTS_MAX
        assert len(set(chosen)) == len(chosen)


def test_a_hundred_seeds_try_every_fault() -> None:
    assert {name for seed in range(100) for name in plan(seed, NAMES)[0]} == set(FAULTS)


def test_one_fault_alone_can_be_asked_for() -> None:
    assert plan(7, ["kill"])[0] == ("kill",)


def write_clients(path: Path, final: int) -> None:
    with Recorder(path) as recorder:
        recorder.record("invoke", "create", "a", call=1, user="a", client_msg_id="new", users=("a", "b"))
        recorder.record("ok", "create", "a", call=1, conversation="c", seq=1)
        recorder.record("invoke", "read", "a", call=2, user="a", conversation="c", final=True)
        entry = {"seq": 1, "sender": "a", "client_msg_id": "new", "kind": "created", "users": ("a", "b")}
        entries = (entry,) * final
        recorder.record("ok", "read", "a", call=2, entries=entries, first_seq=1, last_seq=final, head_seq=final)


def spoken(conversation: str, process: str, epoch: int, time: int) -> bytes:
    return (
        f'{{"time":{time},"type":"ok","op":"speak","process":"{process}","conversation":"{conversation}",'
        f'"epoch":{epoch}}}\n'
    ).encode()


def test_clients_and_owners_are_judged_together(tmp_path: Path) -> None:
    write_clients(tmp_path / "clients", 1)
    two_owners = spoken("c", "n1", 1, 1) + spoken("c", "n2", 1, 2)
    report = judge(tmp_path / "history", tmp_path / "clients", two_owners, ["c"])
    assert report.names() == {"split-brain"}
    assert report.judged["lost-write"] == 1


def test_what_owners_spoke_of_in_other_runs_does_not_count(tmp_path: Path) -> None:
    write_clients(tmp_path / "clients", 1)
    two_owners = spoken("other", "n1", 1, 1) + spoken("other", "n2", 1, 2)
    assert judge(tmp_path / "history", tmp_path / "clients", two_owners, ["c"]).ok
    assert b"other" not in (tmp_path / "history").read_bytes()


def test_a_lost_entry_is_found(tmp_path: Path) -> None:
    write_clients(tmp_path / "clients", 0)
    report = judge(tmp_path / "history", tmp_path / "clients", b"", ["c"])
    assert "lost-write" in report.names()


@pytest.mark.parametrize(
    ("heard_s", "busy", "breaches", "excused"),
    [
        (CALM_S - 1, False, [], []),
        (CALM_S + 1, False, ["late-delivery"], []),
        (CALM_S + 1, True, [], ["late-delivery"]),
        (CALM_S + LOST_S + 1, True, ["leak"], []),
    ],
)
async def test_what_comes_late_is_not_lost(
    autojump_clock: trio.testing.MockClock, heard_s: float, busy: bool, breaches: list[str], excused: list[str]
) -> None:
    begun_s = trio.current_time()
    load = SimpleNamespace(removed=[], unheard=lambda: ["d1"] * (trio.current_time() < begun_s + heard_s))
    recorder = SimpleNamespace(record=lambda *_, **__: None)
    trial = Trial(SimpleNamespace(nodes=[]), recorder, random.Random(1), lambda _: None, None, "", 5.0)  # type: ignore[arg-type]
    trial.stalled_s = 2.0 if busy else 0.0
    await calm(trial, load, begun_s + CALM_S)  # type: ignore[arg-type]
    assert [each.partition(":")[0] for each in trial.breaches] == breaches
    assert [each.partition(":")[0] for each in trial.excused] == excused


@pytest.mark.parametrize(
    ("names", "longest_s", "breaches"),
    [
        (["rolling"], ACK_MAX_S, []),
        (["rolling"], ACK_MAX_S + 0.1, ["late-ack"]),
        (["drain", "rolling"], ACK_MAX_S + 0.1, ["late-ack"]),
        (["kill", "rolling"], ACK_MAX_S + 0.1, []),
        (["redis-flush"], ACK_MAX_S + 0.1, []),
    ],
)
def test_nobody_waits_long_where_nodes_are_only_drained(
    names: list[str], longest_s: float, breaches: list[str]
) -> None:
    load = SimpleNamespace(everybody=[SimpleNamespace(longest_ack_s=0.1), SimpleNamespace(longest_ack_s=longest_s)])
    trial = Trial(SimpleNamespace(nodes=[]), None, random.Random(1), lambda _: None, None, "", 5.0, 0.0)  # type: ignore[arg-type]
    look_for_long_waits(trial, load, names)  # type: ignore[arg-type]
    assert [each.partition(":")[0] for each in trial.breaches] == breaches
