"""How Cassandra is reached, as far as that needs none."""

from types import SimpleNamespace

import pytest
from cassandra import ConsistencyLevel, OperationTimedOut, ProtocolVersion
from cassandra.cluster import EXEC_PROFILE_DEFAULT
from cassandra.connection import ConnectionException
from cassandra.policies import FallthroughRetryPolicy, NoSpeculativeExecutionPolicy
from cassandra.protocol import IsBootstrappingErrorMessage

from store.cassandra_session import READS, SERIAL_READS, Access, connect, open_cluster
from store.cassandra_statements import prepare
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


@pytest.mark.parametrize(
    ("consistency", "reads", "serial"),
    [
        ("LOCAL_QUORUM", "LOCAL_QUORUM", "LOCAL_SERIAL"),
        ("QUORUM", "QUORUM", "SERIAL"),
        ("EACH_QUORUM", "QUORUM", "SERIAL"),
        ("ALL", "ALL", "SERIAL"),
    ],
)
def test_nothing_is_asked_of_fewer_replicas_and_nothing_but_reads_is_sent_twice(consistency, reads, serial):
    cluster = open_cluster(Access(consistency=consistency))
    try:
        assert cluster.protocol_version == ProtocolVersion.V5
        profiles = cluster.profile_manager.profiles
        asked = {EXEC_PROFILE_DEFAULT: consistency, READS: reads, SERIAL_READS: serial}
        assert profiles.keys() >= asked.keys()
        for name, level in asked.items():
            profile = profiles[name]
            assert ConsistencyLevel.value_to_name[profile.consistency_level] == level
            assert ConsistencyLevel.value_to_name[profile.serial_consistency_level] == serial
            assert type(profile.retry_policy) is FallthroughRetryPolicy
            again = not isinstance(profile.speculative_execution_policy, NoSpeculativeExecutionPolicy)
            assert again == (name == READS)
    finally:
        cluster.shutdown()
    prepared = prepare(SimpleNamespace(prepare=lambda text: SimpleNamespace(query=text)))
    twice = {each.query.split()[0] for each in prepared.values() if each.is_idempotent}
    once = {each.query.split()[0] for each in prepared.values() if not each.is_idempotent}
    assert (twice, once) == ({"SELECT"}, {"INSERT", "UPDATE", "DELETE"})
