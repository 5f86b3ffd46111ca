"""A session with Cassandra: how to get in, what to ask for, and what the driver's errors mean.

Nothing is retried behind the store's back and no consistency is lowered: the store decides what to repeat. Only reads
are sent to a second replica when the first is slow. All functions here block: call them in a thread.
"""

import ssl
from collections import Counter
from typing import Any, Final

from cassandra import (
    AuthenticationFailed,
    ConsistencyLevel,
    DriverException,
    InvalidRequest,
    ProtocolVersion,
    Unauthorized,
    UnresolvableContactPoints,
)
from cassandra import Unavailable as NoReplicas
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    ResponseFuture,
    Session,
)
from cassandra.connection import ConnectionException
from cassandra.metadata import NetworkTopologyStrategy, protect_name
from cassandra.policies import (
    ConstantSpeculativeExecutionPolicy,
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    FallthroughRetryPolicy,
    TokenAwarePolicy,
)
from cassandra.protocol import ErrorMessage, SyntaxException
from cassandra.query import tuple_factory
from msgspec import Struct

from store.interface import NotWritten, OutcomeUnknown, StoreError, Unavailable
from store.replication import LOCAL, Replication, refusal

REQUEST_TIMEOUT_S: Final = 5.0
"""Seconds after which a request's outcome is unknown: Cassandra gives up after 2 s of writing, 5 s of reading."""

CONNECT_TIMEOUT_S: Final = 5.0
"""Seconds that a connection may take to be made."""

SPECULATIVE_DELAY_S: Final = 0.2
"""Seconds after which a read is sent to another replica too: far more than a healthy one takes (p99 some 20 ms)."""

RECONNECT_MAX_S: Final = 10.0
"""Seconds between two attempts to reach a node of Cassandra that is away, at most."""

DRIVER_ERRORS: Final = (DriverException, ErrorMessage, NoHostAvailable, ConnectionException)
"""All that the driver raises: of these only some are a DriverException. Some errors of a Cassandra node it passes on as
the messages they came in: that it failed, starts, or has too much to do. That no node is there, or that a connection
ended under a request, it tells by errors of their own."""

READS: Final = "reads"
"""The execution profile of reads."""

SERIAL_READS: Final = "serial reads"
"""The execution profile of serial reads."""


class Access(Struct, frozen=True):
    """How to reach a cluster's tables.

    Attributes:
        hosts: addresses of some nodes.
        port: of the native protocol, on all of them.
        keyspace: that holds the tables.
        datacenter: whose replicas are asked; empty: that of the first host that answers.
        consistency: LOCAL_QUORUM, QUORUM, EACH_QUORUM or ALL.
        user: of password authentication; empty: none.
        password: of that user.
        tls_ca: PEM file with the authority that signed the nodes' certificates; empty: no TLS.
    """

    hosts: tuple[str, ...] = ("127.0.0.1",)
    port: int = 9042
    keyspace: str = "tidegate"
    datacenter: str = ""
    consistency: str = LOCAL
    user: str = ""
    password: str = ""
    tls_ca: str = ""


class CannotUse(StoreError):
    """Cassandra is there and cannot be used as configured; waiting will not help. The message says what to change."""


def open_cluster(access: Access) -> Cluster:
    """The driver's cluster, not connected yet.

    Raises:
        CannotUse: the CA file cannot be read.
        Unavailable: no host's name leads to an address; it may later.
    """
    try:
        return _cluster(access)
    except UnresolvableContactPoints:
        hosts = ", ".join(access.hosts)
        raise Unavailable(
            f"no address is known of {hosts}: see cassandra_hosts, and whether names are resolved"
        ) from None


def _cluster(access: Access) -> Cluster:
    reads, serial = _consistencies(access.consistency)
    writes = ConsistencyLevel.name_to_value[access.consistency]
    return Cluster(
        contact_points=list(access.hosts),
        port=access.port,
        protocol_version=ProtocolVersion.V5,
        auth_provider=PlainTextAuthProvider(access.user, access.password) if access.user else None,
        ssl_context=_tls(access.tls_ca) if access.tls_ca else None,
        connect_timeout=CONNECT_TIMEOUT_S,
        control_connection_timeout=CONNECT_TIMEOUT_S,
        reconnection_policy=ExponentialReconnectionPolicy(0.5, RECONNECT_MAX_S),
        execution_profiles={
            EXEC_PROFILE_DEFAULT: _profile(access, writes, serial, None),
            READS: _profile(access, reads, serial, ConstantSpeculativeExecutionPolicy(SPECULATIVE_DELAY_S, 1)),
            SERIAL_READS: _profile(access, serial, serial, None),
        },
    )


def _consistencies(name: str) -> tuple[int, int]:
    """Of reads (each datacenter's quorum is for writes only), and of lightweight transactions."""
    local = name == LOCAL
    reads = "QUORUM" if name == "EACH_QUORUM" else name
    return ConsistencyLevel.name_to_value[reads], ConsistencyLevel.LOCAL_SERIAL if local else ConsistencyLevel.SERIAL


def _profile(access: Access, consistency: int, serial: int, speculative: Any) -> ExecutionProfile:
    return ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(access.datacenter)),
        retry_policy=FallthroughRetryPolicy(),
        consistency_level=consistency,
        serial_consistency_level=serial,
        request_timeout=REQUEST_TIMEOUT_S,
        row_factory=tuple_factory,
        speculative_execution_policy=speculative,
    )


def _tls(ca_path: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_path)  # checks authority and address of each node's certificate
    except (OSError, ssl.SSLError) as error:
        raise CannotUse(f"cassandra_tls_ca {ca_path} cannot be used: {error}; give a PEM file with the CA") from None


def connect(cluster: Cluster, access: Access) -> Session:
    """Connect and enter the keyspace.

    Raises:
        Unavailable: no node answers; it may later.
        CannotUse: credentials, datacenter or keyspace are wrong, or there are too few replicas.
    """
    try:
        session = cluster.connect()
        _check_datacenter(cluster, access)
        _check_keyspace(cluster, access)
        session.set_keyspace(access.keyspace)
    except NoHostAvailable as error:
        _check_datacenter(cluster, access)  # of another one than any host's, the driver asks nobody
        raise _no_host(error, access) from None
    except (AuthenticationFailed, Unauthorized) as error:
        raise _wrong_credentials(access, error) from None
    except InvalidRequest as error:
        raise CannotUse(f"Cassandra refuses keyspace {access.keyspace!r}: {error}") from None
    except DRIVER_ERRORS as error:
        raise Unavailable(f"Cassandra failed while keyspace {access.keyspace!r} was entered ({error})") from None
    return session


def keyspace_to_make(cluster: Cluster, access: Access, copies: int) -> str:
    """The statement that makes the keyspace with so many copies in the datacenter; empty: there is one already.

    Connects. Raises as ``connect`` does, and CannotUse if there are several datacenters and none is named.
    """
    try:
        cluster.connect()
    except NoHostAvailable as error:
        _check_datacenter(cluster, access)
        raise _no_host(error, access) from None
    if access.keyspace in cluster.metadata.keyspaces:
        return ""
    _check_datacenter(cluster, access)
    datacenters = sorted(_nodes(cluster))
    if not access.datacenter and len(datacenters) != 1:
        raise CannotUse(f"Cassandra has the datacenters {', '.join(datacenters)}: set cassandra_datacenter to one")
    named = access.datacenter or datacenters[0]
    if refused := refusal(Replication(access.keyspace, {named: copies}, _nodes(cluster)), access.consistency, named):
        raise CannotUse(refused.replace("lower the factor by ALTER KEYSPACE", "ask for fewer copies"))
    datacenter = named.replace("'", "''")
    return (
        f"CREATE KEYSPACE IF NOT EXISTS {protect_name(access.keyspace)} "
        f"WITH replication = {{'class': 'NetworkTopologyStrategy', '{datacenter}': {copies}}}"
    )


def create_keyspace(cluster: Cluster, access: Access, copies: int) -> bool:
    """Make the keyspace, if there is none; False: there is. Raises as ``keyspace_to_make`` does."""
    statement = keyspace_to_make(cluster, access, copies)
    if not statement:
        return False
    try:
        cluster.connect().execute(statement)
    except (InvalidRequest, SyntaxException, Unauthorized) as error:
        raise CannotUse(f"Cassandra refuses to make keyspace {access.keyspace!r}: {error}") from None
    except DRIVER_ERRORS as error:
        raise Unavailable(f"the keyspace may be made or not ({error}): run it again") from None
    return True


def asked_datacenter(cluster: Cluster, access: Access) -> str:
    """The datacenter whose replicas alone are asked; empty: those of all are. Call it behind ``connect``.

    Where none is named the driver takes that of the first host that answers; ``connect`` has made sure that there is no
    other then.
    """
    if access.consistency != LOCAL:
        return ""
    return access.datacenter or min(_nodes(cluster), default="")


def _check_datacenter(cluster: Cluster, access: Access) -> None:
    found = sorted(_nodes(cluster))
    if found and access.datacenter and access.datacenter not in found:
        raise CannotUse(
            f"Cassandra has no datacenter {access.datacenter!r}; it has {', '.join(found)}: set cassandra_datacenter"
        )


def _check_keyspace(cluster: Cluster, access: Access) -> None:
    keyspace = cluster.metadata.keyspaces.get(access.keyspace)
    if keyspace is None:
        raise CannotUse(
            f"Cassandra has no keyspace {access.keyspace!r}: make it by tidegate migrate --create-keyspace N "
            "(N copies of everything), or set cassandra_keyspace to one that exists"
        )
    if refused := refusal(replication_of(cluster, access), access.consistency, access.datacenter):
        raise CannotUse(refused)


def replication_of(cluster: Cluster, access: Access) -> Replication:
    """The copies of a keyspace that exists."""
    strategy = cluster.metadata.keyspaces[access.keyspace].replication_strategy
    if isinstance(strategy, NetworkTopologyStrategy):
        copies = {place: factor for place, factor in strategy.dc_replication_factors.items() if factor}
    else:
        copies = {"": getattr(strategy, "replication_factor", 1)}
    return Replication(access.keyspace, copies, _nodes(cluster))


def _nodes(cluster: Cluster) -> Counter[str]:
    """Cassandra nodes by datacenter, alive or not."""
    return Counter(host.datacenter for host in cluster.metadata.all_hosts() if host.datacenter)


def _no_host(error: NoHostAvailable, access: Access) -> StoreError:
    errors = list(error.errors.values()) if isinstance(error.errors, dict) else []
    for each in errors:
        if isinstance(each, AuthenticationFailed):
            return _wrong_credentials(access, each)
    reasons = "; ".join(sorted({str(each) for each in errors})) or str(error)
    return Unavailable(f"no Cassandra node answers at {', '.join(access.hosts)}, port {access.port} ({reasons})")


def _wrong_credentials(access: Access, error: Exception) -> StoreError:
    user = f"user {access.user!r}" if access.user else "a session without a user"
    return CannotUse(f"Cassandra refuses {user} ({error}): set cassandra_user and cassandra_password")


def read_error(error: BaseException) -> StoreError:
    """What an error of a read means."""
    return Unavailable(f"Cassandra cannot answer ({_text(error)})")


def write_error(error: BaseException, future: ResponseFuture, partitions: int) -> StoreError:
    """What an error of a write means: NotWritten only where nothing can have been written, now or later.

    A coordinator that knows too few replicas alive writes nothing; though of several partitions, it may have sent the
    first ones before it came to the one without replicas.
    """
    text = _text(error)
    if (isinstance(error, NoReplicas) and partitions == 1) or (
        isinstance(error, NoHostAvailable) and not future.attempted_hosts
    ):
        return NotWritten(f"Cassandra took nothing ({text})")
    return OutcomeUnknown(f"Cassandra did not confirm it ({text})")


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
