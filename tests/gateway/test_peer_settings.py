"""Settings by which nodes reach each other directly."""

import pytest

from gateway.config_load import ConfigError, load

SHARED = {"store": "cassandra"}


def test_a_short_cluster_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"cluster_secret .*31 characters; allowed: at least 32.*openssl") as caught:
        load(SHARED, {"TIDEGATE_CLUSTER_SECRET": "geheim" + "x" * 25})
    assert "geheim" not in str(caught.value)
    assert "TIDEGATE_CLUSTER_SECRET" in str(caught.value)
    assert load({**SHARED, "cluster_secret": "x" * 32}, {}).cluster_secret == "x" * 32


@pytest.mark.parametrize("address", ["10.0.0.7", "node7.internal", "node7:8481", "[2001:db8::7]", "[2001:db8::7]:8481"])
def test_an_address_for_other_nodes_is_taken(address: str) -> None:
    assert load({**SHARED, "advertise": address}, {}).advertise == address


@pytest.mark.parametrize("address", ["node7:", "node7:0", "node7:65536", "2001:db8::7", ":8481", "http://node7", "a b"])
def test_what_is_no_address_is_named_with_its_source(address: str) -> None:
    with pytest.raises(ConfigError, match=r"advertise is .*allowed: HOST or HOST:PORT") as caught:
        load(SHARED, {"TIDEGATE_ADVERTISE": address})
    assert repr(address) in str(caught.value)
    assert "TIDEGATE_ADVERTISE" in str(caught.value)


def test_other_nodes_need_a_port_besides_that_of_clients() -> None:
    with pytest.raises(ConfigError, match="clients are served on"):
        load({**SHARED, "advertise": "node7:8480"}, {})


def test_several_processes_cannot_share_one_port_for_other_nodes() -> None:
    with pytest.raises(ConfigError, match="2 processes cannot share"):
        load({**SHARED, "processes": 2, "advertise": "node7:8481"}, {})
    assert load({**SHARED, "processes": 2, "advertise": "node7"}, {}).processes == 2
