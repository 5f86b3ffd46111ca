"""Every setting of a node: one struct, with unit, default and reason. See ``tidegate config``."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from protocol import limits

KIB = 1024
MIB = 1024 * KIB

CLUSTER_SECRET_CHARACTERS_MIN = 32
"""Length of ``cluster_secret``: what cannot be guessed even by somebody who recorded a handshake of two nodes."""


def _setting(
    meaning: str,
    unit: str = "",
    *,
    secret: bool = False,
    ge: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] = (),
) -> Meta:
    return Meta(description=meaning, extra={"unit": unit, "secret": secret, "choices": choices}, ge=ge, le=le)


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The effective settings of a node. Field order is the order in which ``tidegate config`` prints them."""

    host: Annotated[str, _setting("address to listen on; 0.0.0.0 for all")] = "127.0.0.1"
    port: Annotated[int, _setting("TCP port; 0 lets the system choose", ge=0, le=65535)] = 8480
    data_dir: Annotated[Path, _setting("where the embedded store and the development secret live")] = Path("data")
    node_name: Annotated[str, _setting("name of this node in welcomes, logs and metrics; empty: the host's name")] = ""

    processes: Annotated[
        int,
        _setting(
            "nodes behind this port, each a process; more than one needs store = cassandra", "processes", ge=1, le=256
        ),
    ] = 1
    process_port: Annotated[
        int,
        _setting(
            "port where the first of several processes answers alone, the next one for the second, and so on "
            "(metrics, other nodes); 0 lets the system choose",
            ge=0,
            le=65535,
        ),
    ] = 0
    roles: Annotated[
        str,
        _setting(
            "what this node does: hold connections (edge), order conversations (owner), or both; "
            "anything but both needs store = cassandra",
            choices=("edge", "owner", "both"),
        ),
    ] = "both"

    store: Annotated[
        str,
        _setting(
            "where conversations are kept; cassandra makes this node one of a cluster",
            choices=("embedded", "cassandra"),
        ),
    ] = "embedded"
    cassandra_hosts: Annotated[
        list[str], _setting("addresses of some Cassandra nodes, which tell the others; empty: 127.0.0.1")
    ] = []
    cassandra_port: Annotated[int, _setting("port of Cassandra's native transport", ge=1, le=65535)] = 9042
    cassandra_keyspace: Annotated[str, _setting("keyspace that holds all tables")] = "tidegate"
    cassandra_datacenter: Annotated[
        str, _setting("datacenter whose replicas are asked; empty: that of the first of cassandra_hosts that answers")
    ] = ""
    cassandra_consistency: Annotated[
        str,
        _setting(
            "consistency of reads and writes; a majority of replicas, in whatever way it is counted",
            choices=("LOCAL_QUORUM", "QUORUM", "EACH_QUORUM", "ALL"),
        ),
    ] = "LOCAL_QUORUM"
    cassandra_user: Annotated[str, _setting("user of password authentication; empty: none")] = ""
    cassandra_password: Annotated[str, _setting("password of that user", secret=True)] = ""
    cassandra_tls_ca: Annotated[str, _setting("PEM file with Cassandra's CA certificate; empty: no TLS")] = ""
    cassandra_requests_max: Annotated[
        int,
        _setting("requests to Cassandra under way at once; more wait, then are refused", "requests", ge=1, le=16_384),
    ] = 256
    redis_url: Annotated[
        str, _setting("redis://, rediss://, redis+sentinel:// or redis+cluster:// URL; empty: no Redis", secret=True)
    ] = ""
    cluster_secret: Annotated[
        str, _setting("secret that nodes know each other by; the same on all, at least 32 characters", secret=True)
    ] = ""
    advertise: Annotated[
        str,
        _setting(
            "HOST or HOST:PORT where other nodes reach this one, on a port besides that of clients; empty: the host "
            "where it listens; without a port the system chooses one"
        ),
    ] = ""
    lease_s: Annotated[float, _setting("silence after which other nodes take over from a node", "s", ge=2)] = 10.0
    lease_renew_s: Annotated[float, _setting("how often a node renews its lease", "s", ge=0.1)] = 2.0
    history_file: Annotated[
        str, _setting("file to append to whenever this node speaks as owner, for tidegate check; empty: none")
    ] = ""

    auth_algorithm: Annotated[
        str, _setting("the one algorithm of accepted tokens", choices=("HS256", "EdDSA", "ES256", "RS256"))
    ] = "HS256"
    auth_secret: Annotated[
        str, _setting("HS256 secret; empty: made on first start, kept in the data directory", secret=True)
    ] = ""
    auth_key_file: Annotated[str, _setting("PEM file with the public key, for EdDSA, ES256, RS256")] = ""
    auth_jwks_url: Annotated[str, _setting("URL of a JWKS with public keys, chosen by kid")] = ""
    auth_jwks_refresh_s: Annotated[float, _setting("how long a fetched JWKS is used", "s", ge=1)] = 300.0
    auth_audience: Annotated[str, _setting("required aud claim; empty: tokens with aud are refused")] = "tidegate"
    auth_issuer: Annotated[str, _setting("required iss claim; empty: not checked")] = ""
    allowed_origins: Annotated[
        list[str], _setting("Origin headers that browsers may connect from; empty: none (native clients send none)")
    ] = []
    proxy_protocol_from: Annotated[
        list[str],
        _setting(
            "networks (CIDR) of load balancers, which must begin a connection with a PROXY protocol v2 header; "
            "empty: none, and nobody may"
        ),
    ] = []
    tls_cert: Annotated[
        str, _setting("PEM file with the certificate and its chain: this node ends TLS 1.3 itself; empty: no TLS")
    ] = ""
    tls_key: Annotated[str, _setting("PEM file with the certificate's private key; empty: it is in tls_cert")] = ""

    connections_max: Annotated[
        int, _setting("connections held at once; 0: derived from the file limit", "connections", ge=0)
    ] = 0
    handshakes_max: Annotated[int, _setting("handshakes in progress at once", "handshakes", ge=1)] = 512
    handshake_timeout_s: Annotated[float, _setting("from accept to authenticated", "s", ge=0.1)] = (
        limits.AUTHENTICATE_TIMEOUT_S
    )
    request_head_bytes_max: Annotated[int, _setting("size of an HTTP request head", "bytes", ge=1024)] = 16 * KIB
    heartbeat_interval_s: Annotated[float, _setting("how often clients are told to send a heartbeat", "s", ge=1)] = (
        limits.HEARTBEAT_INTERVAL_S
    )
    idle_timeout_s: Annotated[float, _setting("silence after which a connection is cut", "s", ge=1)] = (
        limits.IDLE_TIMEOUT_S
    )
    send_queue_bytes_max: Annotated[int, _setting("bytes that wait for one slow consumer", "bytes", ge=1024)] = 1 * MIB
    send_queue_age_max_s: Annotated[float, _setting("how long bytes wait for one slow consumer", "s", ge=0.1)] = 10.0

    devices_per_user_max: Annotated[
        int, _setting("connections of one user on this node; one more closes the oldest", "connections", ge=1)
    ] = 32
    group_members_max: Annotated[int, _setting("members of a group", "users", ge=2)] = limits.GROUP_MEMBERS_MAX
    channel_members_max: Annotated[int, _setting("members of a channel", "users", ge=2)] = limits.CHANNEL_MEMBERS_MAX
    commands_per_s_max: Annotated[
        float,
        _setting(
            "commands of one connection per second, sustained, and HTTP requests of one user; 0: no limit", "1/s", ge=0
        ),
    ] = 100.0
    commands_burst_max: Annotated[
        int, _setting("commands of one connection at once, and HTTP requests of one user", "commands", ge=1)
    ] = 400
    conversation_sends_per_s_max: Annotated[
        float,
        _setting(
            "entries appended to one conversation per second by all its members, sustained: as many as five "
            "clients at their own limit, and far more than anybody reads; 0: no limit",
            "1/s",
            ge=0,
        ),
    ] = 500.0
    conversation_burst_max: Annotated[
        int, _setting("entries appended to one conversation at once, which then count for that rate", "entries", ge=1)
    ] = 2_000
    pending_sends_max: Annotated[
        int,
        _setting(
            "sends of the node that wait to become durable, with 256 bytes of text each on average", "sends", ge=1
        ),
    ] = 65_536
    loaded_conversations_max: Annotated[
        int, _setting("conversations that the owner holds in memory", "conversations", ge=16)
    ] = 8_192
    tail_entries_max: Annotated[int, _setting("recent entries held per loaded conversation", "entries", ge=16)] = 128
    syncs_max: Annotated[int, _setting("syncs answered at once", "syncs", ge=1)] = 64
    presence_grace_s: Annotated[float, _setting("after the last connection until offline", "s", ge=0)] = (
        limits.PRESENCE_GRACE_S
    )
    receipt_delay_s: Annotated[
        float, _setting("how long receipts are held back to be coalesced", "s", ge=0.01, le=limits.RECEIPT_DELAY_S)
    ] = 1.0

    drain_grace_s: Annotated[float, _setting("from SIGTERM to the last connection's end", "s", ge=0)] = 60.0
    drain_lead_s: Annotated[
        float,
        _setting("of that, how long connections are still accepted, so that a load balancer notices", "s", ge=0),
    ] = 0.0
    log_format: Annotated[
        str, _setting("form of log lines; auto: console on a terminal", choices=("auto", "json", "console"))
    ] = "auto"
    log_level: Annotated[
        str, _setting("least severity that is logged", choices=("debug", "info", "warning", "error"))
    ] = "info"

    def __repr__(self) -> str:
        """Without the secrets, so that no log line and no traceback can show them."""
        shown = ", ".join(
            f"{name}={'(not shown)' if name in SECRETS and getattr(self, name) else repr(getattr(self, name))}"
            for name in self.__struct_fields__
        )
        return f"Settings({shown})"


SECRETS = frozenset(("auth_secret", "cassandra_password", "redis_url", "cluster_secret"))
"""Settings that are never shown; a test compares them with those declared secret."""
