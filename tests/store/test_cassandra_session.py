"""How Cassandra is reached, as far as that needs none."""

from types import SimpleNamespace

import pytest
from cassandra import OperationTimedOut
from cassandra.connection import ConnectionException
from cassandra.protocol import IsBootstrappingErrorMessage

from store.cassandra_session import Access, connect, open_cluster
from store.interface import Unavailable


def test_hosts_without_an_address_are_something_to_wait_for():
    """A name service may be away for a moment, as everything else may."""
    with pytest.raises(Unavailable, match="no address is known of not a host, nor this: see cassandra_hosts"):
        open_cluster(Access(hosts=("not a host", "nor this")))


@pytest.mark.parametrize(
    "error",
    [
        OperationTimedOut("too late"),
        ConnectionException("Failed to set keyspace on all hosts: too late"),
        IsBootstrappingErrorMessage(0x1002, "too late", None),
    ],
)
def test_a_cassandra_that_fails_while_its_keyspace_is_entered_is_something_to_wait_for(error: Exception):
    def fail(_keyspace: str) -> None:
        raise error

    strategy = SimpleNamespace(replication_factor=3)
    metadata = SimpleNamespace(
        all_hosts=lambda: [SimpleNamespace(datacenter="dc1")] * 3,
        keyspaces={"k": SimpleNamespace(replication_strategy=strategy)},
    )
    cluster = SimpleNamespace(metadata=metadata, connect=lambda: SimpleNamespace(set_keyspace=fail))
    with pytest.raises(Unavailable, match=r"failed while keyspace 'k' was entered .*too late"):
        connect(cluster, Access(hosts=("h",), keyspace="k"))
