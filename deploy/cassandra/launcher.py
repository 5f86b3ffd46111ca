"""Real Cassandra nodes on this machine, each on a loopback address of its own, for trials and tests.

CassandraCluster starts as many as are needed; ``run.py`` starts one by hand. The jars come from ``fetch.sh``.

A cluster takes the addresses 127.X.Y.1, .2, .3, ... with the same ports on each: a driver uses one port for all
nodes. Behind proxies a node listens on 127.X.Y.101, .102, ... and *advertises* 127.X.Y.1, .2, ..., where a proxy
has to listen on the same port: so everything a driver learns leads to the proxies.
"""

import functools
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Literal

from deploy.cassandra import cql
from deploy.certificates import STORE_PASSWORD, make_certificate
from deploy.loopback import free_network
from deploy.processes import ServerFailed, ServerProcess, Startable

PORT = 9042
"""Where nodes speak CQL."""

STORAGE_PORT = 7000
"""Where nodes speak to each other."""

START_TIMEOUT_S = 180.0
"""From start until a node must answer, seconds: 7 on two idle cores, ten times that on busy ones."""

PROBE_TIMEOUT_S = 5.0
"""How long a node may take for each step of its answer to the question whether it answers, seconds."""

HEAP_MB = 512
"""Memory for a node's heap, MB; with all else it takes 0.95 GB."""

NODES_MAX = 9
"""The most nodes of one cluster: more than a machine for tests can hold."""

HIDDEN_OFFSET = 100
"""What is added to the last number of the address that a node advertises, where proxies take that one."""

DATACENTER = "datacenter1"
"""The one datacenter of every cluster here: what the simple snitch says."""

_HERE = Path(__file__).parent
LIBRARY = _HERE.parent.parent / ".cache" / "cassandra" / "lib"

# What Cassandra 5.0 needs of a JDK 17 and that JDK does not give by default.
_EXPORTS = [
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/java.lang.ref",
    "java.base/java.lang.reflect",
    "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
]
_OPENS = [
    "java.base/java.lang",
    "java.base/java.lang.module",
    "java.base/java.lang.reflect",
    "java.base/java.io",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.util.jar",
    "java.base/sun.nio.ch",
    "jdk.management/com.sun.management.internal",
]


@dataclass(frozen=True, slots=True)
class CassandraOptions:
    """How the nodes of a cluster run.

    Attributes:
        nodes: how many, 1 to NODES_MAX.
        commitlog_sync: "periodic" writes the log to disk every 10 s: killing every replica at once may lose that
            much; "batch" does it before each acknowledgement.
        authentication: whether drivers must log in; then as user "cassandra" with password "cassandra".
        tls: whether drivers must speak TLS; then they have to trust the cluster's ``certificate``.
        proxied: whether proxies stand before the nodes, at the addresses that they advertise.
        port: where every node speaks CQL.
    """

    nodes: int = 1
    commitlog_sync: Literal["periodic", "batch"] = "periodic"
    authentication: bool = False
    tls: bool = False
    proxied: bool = False
    port: int = PORT


def what_is_missing() -> str:
    """Why no Cassandra can be started here, in words; empty when one can."""
    if not _java():
        return "Java 17, which Cassandra 5.0 needs, is missing (install openjdk-17-jre-headless)"
    if not any(LIBRARY.glob("cassandra-all-*.jar")):
        return "Cassandra is not fetched yet (run deploy/cassandra/fetch.sh)"
    return ""


@functools.cache
def _java() -> str:
    """The program of a Java 17, be it the default one or not; empty where there is none."""
    for program in [shutil.which("java"), *map(str, sorted(Path("/usr/lib/jvm").glob("java-17-*/bin/java")))]:
        if program is None:
            continue
        told = subprocess.run([program, "-version"], check=False, capture_output=True, text=True)
        if ' version "17.' in told.stderr:
            return program
    return ""


class CassandraNode(ServerProcess, Startable):
    """One node of a cluster.

    Attributes:
        address: where it listens.
        advertised: where drivers are told to connect: ``address``, or the proxy before it.
        port: where it speaks CQL, at both addresses.
    """

    def __init__(
        self, address: str, advertised: str, port: int, command: Sequence[str], log_path: Path, access: cql.Access
    ) -> None:
        """Describe a node; nothing is started yet."""
        super().__init__(f"Cassandra node {address}", command, log_path)
        self.address = address
        self.advertised = advertised
        self.port = port
        self._access = access
        self._refusal = ""

    def start(self) -> None:
        """Start it and wait until it answers; it may not know yet which others are alive. Raises ServerFailed."""
        try:
            self.launch()
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def wait_ready(self) -> None:
        """Wait until a started one answers. Raises ServerFailed, with what it answered last."""
        try:
            self.wait_until(self.answers, START_TIMEOUT_S, "answer to CQL")
        except ServerFailed as error:
            raise ServerFailed(f"{error}\nlast refusal: {self._refusal or 'none'}") from None

    def answers(self, consistency: int = cql.ONE, table: str = "system.local") -> bool:
        """Whether it answers a read of ``table`` at that consistency now."""
        question = f"SELECT * FROM {table} LIMIT 1"
        try:
            cql.ask(self.address, self.port, question, consistency, self._access, timeout_s=PROBE_TIMEOUT_S)
        except (OSError, cql.Refused) as error:
            self._refusal = str(error)
            return False
        return True


class CassandraCluster(Startable):
    """Some nodes that form one cluster; also a context manager that starts them and ends them for good.

    Attributes:
        options: how they run.
        nodes: the nodes, in order of their addresses.
        certificate: with TLS, what the nodes show and clients have to trust; None without.
    """

    def __init__(self, directory: Path, options: CassandraOptions | None = None, network: str | None = None) -> None:
        """Write the nodes' configuration; nothing is started yet.

        Args:
            directory: for their data, configuration and logs; made if it is missing.
            options: how they run.
            network: the first three numbers of their addresses, as "127.0.0."; by default a free one is sought.

        Raises:
            ServerFailed: Cassandra is not installed, or no address is free.
            ValueError: the options do not fit together.
        """
        self.options = options or CassandraOptions()
        if not 1 <= self.options.nodes <= NODES_MAX:
            raise ValueError(f"nodes is {self.options.nodes}; allowed are 1 to {NODES_MAX}")
        if missing := what_is_missing():
            raise ServerFailed(missing)
        network = network or free_network(self.options.port, STORAGE_PORT)
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        advertised = [f"{network}{number}" for number in range(1, self.options.nodes + 1)]
        offset = HIDDEN_OFFSET if self.options.proxied else 0
        addresses = [f"{network}{number + offset}" for number in range(1, self.options.nodes + 1)]
        self.certificate = make_certificate(directory, [*addresses, *advertised]) if self.options.tls else None
        self.nodes = [self._node(directory, index, addresses, advertised[index]) for index in range(self.options.nodes)]

    @property
    def addresses(self) -> list[str]:
        """What a driver is given as contact points: where nodes are advertised."""
        return [node.advertised for node in self.nodes]

    @property
    def port(self) -> int:
        """Where every node speaks CQL."""
        return self.options.port

    @property
    def user(self) -> str:
        """Who may log in; empty where nobody has to."""
        return "cassandra" if self.options.authentication else ""

    @property
    def password(self) -> str:
        """The password of ``user``."""
        return self.user

    def start(self) -> None:
        """Start all nodes and wait until each knows that all others are alive. Raises ServerFailed.

        The first one, whom the others ask who is there, has to answer before they start: they would give up on a busy
        machine, where it takes long to come up beside them.
        """
        first, *others = self.nodes
        try:
            first.start()
            for node in others:
                node.launch()
            for node in others:
                node.wait_ready()
            self.wait_agreed()
        except BaseException:
            self.kill()
            raise

    def wait_agreed(self) -> None:
        """Wait until each node can reach all others, as after the restart of one. Raises ServerFailed."""
        for node in self.nodes:
            # A read at ALL of a table that every node has a copy of works only if all are alive for the one asked.
            answers = functools.partial(node.answers, cql.ALL, "system_traces.sessions")
            node.wait_until(answers, START_TIMEOUT_S, "answer from all nodes")

    def kill(self) -> None:
        """End all nodes at once."""
        for node in self.nodes:
            node.kill()

    def stop(self) -> None:
        """Let all nodes end in order, one after the other."""
        for node in self.nodes:
            node.stop()

    def _node(self, directory: Path, index: int, addresses: list[str], advertised: str) -> CassandraNode:
        options = self.options
        single = options.nodes == 1
        folder = directory / f"node{index + 1}"
        folder.mkdir(exist_ok=True)
        template = Template((_HERE / "cassandra.yaml.template").read_text(encoding="utf-8"))
        text = template.substitute(
            # Equal parts of the ring, so that a cluster is the same every time; the spread of one node does not matter.
            num_tokens=16 if single else 1,
            initial_token="" if single else (index * 2**64 // options.nodes) - 2**63,
            seed=addresses[0],
            address=addresses[index],
            advertised=advertised,
            storage_port=STORAGE_PORT,
            port=options.port,
            directory=folder,
            commitlog_sync=options.commitlog_sync,
            commitlog_period="commitlog_sync_period: 10000ms" if options.commitlog_sync == "periodic" else "",
            authenticator="PasswordAuthenticator" if options.authentication else "AllowAllAuthenticator",
            authorizer="CassandraAuthorizer" if options.authentication else "AllowAllAuthorizer",
            tls=str(options.tls).lower(),
            keystore=self.certificate.store_path if self.certificate else "",
            keystore_password=STORE_PASSWORD,
        )
        (folder / "cassandra.yaml").write_text(text, encoding="utf-8")
        tls = self.certificate.client_context() if self.certificate else None
        access = cql.Access(self.user, self.password, tls)
        command = _command(folder, options.nodes)
        return CassandraNode(addresses[index], advertised, options.port, command, folder / "cassandra.log", access)


def _command(folder: Path, nodes: int) -> list[str]:
    """What starts the node whose configuration lies in ``folder``, in a cluster of so many."""
    properties = {
        "cassandra.config": f"file://{folder}/cassandra.yaml",
        "cassandra.storagedir": folder,
        "logback.configurationFile": _HERE / "logback.xml",
        # Nobody is waited for: all nodes of a cluster start together, and a test of one waits for nothing.
        "cassandra.skip_wait_for_gossip_to_settle": 0,
        # How long a node asks for somebody who knows the cluster before it gives up: busy machines need many seconds.
        # Nothing else waits so long, because nodes here never bootstrap.
        "cassandra.ring_delay_ms": 60_000,
        "cassandra.superuser_setup_delay_ms": 0,
        # Every node has a copy of these, so that logins and wait_agreed() do not hang on one of them.
        "cassandra.system_auth.default_rf": nodes,
        "cassandra.system_traces.default_rf": nodes,
        "cassandra.system_distributed.default_rf": nodes,
        "jdk.attach.allowAttachSelf": "true",
        "java.io.tmpdir": folder,
    }
    command = [_java(), f"-Xmx{HEAP_MB}m", "-Xss512k", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"]
    command += [f"-D{name}={value}" for name, value in properties.items()]
    command += [f"--add-exports={module}=ALL-UNNAMED" for module in _EXPORTS]
    command += [f"--add-opens={package}=ALL-UNNAMED" for package in _OPENS]
    return [*command, "-cp", f"{folder}:{LIBRARY}/*", "org.apache.cassandra.service.CassandraDaemon"]
