import pytest

from bench.torture.cluster import Options
from bench.torture.scenarios import FAULTS, impossible


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
