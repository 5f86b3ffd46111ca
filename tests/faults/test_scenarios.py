import pytest

from bench.torture.cluster import Options
from bench.torture.scenarios import FAULTS, after_kill_s, impossible
from bench.torture.trial import FORWARD_S, RETURN_MARGIN_S


def test_every_fault_says_what_it_does_and_what_is_expected() -> None:
    for name, fault in FAULTS.items():
        assert fault.meaning.endswith("."), name
        assert "\n" not in fault.meaning, name


@pytest.mark.parametrize("name", FAULTS)
def test_a_cluster_of_its_own_can_be_harmed_in_every_way(name: str) -> None:
    assert not impossible(name, Options())


def test_the_cassandra_of_others_is_left_alone() -> None:
    options = Options(cassandra_hosts=("db.example",))
    left_out = {name for name in FAULTS if impossible(name, options)}
    assert left_out == {"cut-cassandra", "lose-reply", "cassandra-slow", "cassandra-away"}
    assert "leave --cassandra-hosts out" in impossible("lose-reply", options)


@pytest.mark.parametrize(
    ("names", "allowed_s"),
    [
        (["kill"], RETURN_MARGIN_S),
        (["kill", "drain", "clock"], RETURN_MARGIN_S),
        (["kill", "redis-flush"], RETURN_MARGIN_S + FORWARD_S),
        (["kill", "redis-flush", "pause"], float("inf")),
    ],
)
def test_a_kill_is_held_to_its_time_unless_another_fault_takes_longer(names: list[str], allowed_s: float) -> None:
    assert after_kill_s(names) == allowed_s


def test_who_loses_leases_also_silences_owners() -> None:
    for name, fault in FAULTS.items():
        if fault.loses_lease and name != "kill":
            assert after_kill_s([name]) == float("inf"), name
