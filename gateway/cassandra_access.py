"""How the settings say to reach Cassandra."""

from gateway.config import Settings
from store.cassandra_session import Access


def cassandra_access(settings: Settings) -> Access:
    """Where the tables of these settings are, and how to get in."""
    return Access(
        hosts=tuple(settings.cassandra_hosts) or ("127.0.0.1",),
        port=settings.cassandra_port,
        keyspace=settings.cassandra_keyspace,
        datacenter=settings.cassandra_datacenter,
        consistency=settings.cassandra_consistency,
        user=settings.cassandra_user,
        password=settings.cassandra_password,
        tls_ca=settings.cassandra_tls_ca,
    )
