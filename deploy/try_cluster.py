"""Runs a cluster to try on this machine until it is interrupted: Cassandra, Redis and two nodes. ``make cluster``."""

import os
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from deploy.cassandra.launcher import CassandraCluster, CassandraOptions
from deploy.processes import ServerFailed, ServerProcess

DATA = Path("data/cluster")
SETTINGS = DATA / "operator.toml"
REDIS_PORT = 6480
NODE_PORTS = (8480, 8481)
START_TIMEOUT_S = 60.0
"""Seconds that each server may take to answer."""
TIDEGATE = (sys.executable, "-m", "gateway.cli.main")


def main() -> int:
    """Start everything, print the commands of a chat across the nodes, and wait. Returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)  # not blocked and waited for: what is started here would inherit that
    DATA.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            environment = _start(stack)
            print(_welcome(environment["TIDEGATE_AUTH_SECRET"]), flush=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except ServerFailed as error:
        print(f"tidegate: the cluster does not run: {error}", file=sys.stderr)
        return 1


def _interrupt(*_: object) -> None:
    """Begin to stop everything, once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _start(stack: ExitStack) -> dict[str, str]:
    """Start all servers, each to be stopped with the stack; returns what the nodes were told by environment."""
    print("starting Cassandra …", flush=True)
    cassandra = stack.enter_context(CassandraCluster(DATA / "cassandra", CassandraOptions(), "127.0.0."))
    command = ["redis-server", "--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    _run(stack, ServerProcess("Redis", command, DATA / "redis.log"), REDIS_PORT)
    environment = {
        "TIDEGATE_STORE": "cassandra",
        "TIDEGATE_CASSANDRA_HOSTS": cassandra.addresses[0],
        "TIDEGATE_CASSANDRA_PORT": str(cassandra.port),
        "TIDEGATE_REDIS_URL": f"redis://127.0.0.1:{REDIS_PORT}/0",
        "TIDEGATE_CLUSTER_SECRET": _secret("cluster-secret"),
        "TIDEGATE_AUTH_SECRET": _secret("auth-secret"),
    }
    _write_settings(environment)
    migrate = [*TIDEGATE, "migrate", "--create-keyspace", "1"]
    if subprocess.run(migrate, env={**os.environ, **environment}, check=False).returncode:
        raise ServerFailed("the tables could not be made; see above")
    for number, port in enumerate(NODE_PORTS, 1):
        name = f"node-{number}"
        command = [*TIDEGATE, "serve", "--port", str(port), "--node-name", name, "--data-dir", str(DATA / name)]
        _run(stack, ServerProcess(name, command, DATA / f"{name}.log", environment), port)
    return environment


def _write_settings(environment: dict[str, str]) -> None:
    """What an operator's commands need to know, as a file: the nodes' settings, with a secret among them."""
    SETTINGS.unlink(missing_ok=True)
    SETTINGS.touch(mode=0o600)
    SETTINGS.write_text(
        "".join((
            f'store = "{environment["TIDEGATE_STORE"]}"\n',
            f'cassandra_hosts = ["{environment["TIDEGATE_CASSANDRA_HOSTS"]}"]\n',
            f"cassandra_port = {environment['TIDEGATE_CASSANDRA_PORT']}\n",
            f'cluster_secret = "{environment["TIDEGATE_CLUSTER_SECRET"]}"\n',
        ))
    )  # fmt: skip


def _run(stack: ExitStack, server: ServerProcess, port: int) -> None:
    """Start a server that is there when its port answers."""

    def answers() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    server.start_until(answers, START_TIMEOUT_S, f"answer on port {port}")
    stack.callback(server.stop)


def _secret(name: str) -> str:
    """A secret that is made once and kept, so that tokens outlive a restart."""
    path = DATA / name
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32))
    return path.read_text()


def _welcome(secret: str) -> str:
    chat = "TIDEGATE_AUTH_SECRET={} {} chat --as {} --to {} --url ws://127.0.0.1:{}"
    program = Path(sys.executable).with_name("tidegate")
    one, other = NODE_PORTS
    return "\n".join((
        f"two nodes run on ports {one} and {other}; their logs and data are in {DATA}",
        "Chat across them, in two more terminals:",
        "  " + chat.format(secret, program, "alice", "bob", one),
        "  " + chat.format(secret, program, "bob", "alice", other),
        "See both nodes, or have one of them drain (in words; more in docs/operations.md):",
        f"  {program} cluster status --config {SETTINGS}",
        f"  {program} cluster drain node-{len(NODE_PORTS)} --config {SETTINGS}",
        f"Then kill one: pkill -9 -f 'node-name node-{len(NODE_PORTS)}'. Ctrl-C ends everything.",
    ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
