"""Runs a cluster to try on this machine until it is interrupted: Cassandra, Redis and two nodes. ``make cluster``."""

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from deploy.cassandra.launcher import CassandraCluster, CassandraOptions
from deploy.processes import ServerFailed, ServerProcess
from gateway.config_load import ENVIRONMENT_PREFIX, SETTINGS

DATA = Path("data/cluster")
SETTINGS_FILE = DATA / "cluster.toml"
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
            _start(stack)
            print(welcome(), flush=True)
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


def _start(stack: ExitStack) -> None:
    """Start all servers, each to be stopped with the stack."""
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
    write_settings(SETTINGS_FILE, environment)
    migrate = [*TIDEGATE, "migrate", "--create-keyspace", "1"]
    if subprocess.run(migrate, env={**os.environ, **environment}, check=False).returncode:
        raise ServerFailed("the tables could not be made; see above")
    for number, port in enumerate(NODE_PORTS, 1):
        name = f"node-{number}"
        command = [*TIDEGATE, "serve", "--port", str(port), "--node-name", name, "--data-dir", str(DATA / name)]
        _run(stack, ServerProcess(name, command, DATA / f"{name}.log", environment), port)


def write_settings(path: Path, environment: Mapping[str, str]) -> None:
    """The nodes' settings as a file, for the commands of a person who tries the cluster; secrets are among them."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(_toml(environment))


def _toml(environment: Mapping[str, str]) -> str:
    """What the environment sets, as TOML."""
    lines = []
    for variable, text in environment.items():
        setting = SETTINGS[variable.removeprefix(ENVIRONMENT_PREFIX).lower()]
        value = text if setting.kind is int else f'["{text}"]' if setting.kind is list else f'"{text}"'
        lines.append(f"{setting.name} = {value}\n")
    return "".join(lines)


def _run(stack: ExitStack, server: ServerProcess, port: int) -> None:
    """Start a server that is there when its port answers."""

    def answers() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    if answers():
        raise ServerFailed(f"port {port}, which {server.name} needs, is another program's: end that one first")
    server.start_until(answers, START_TIMEOUT_S, f"answer on port {port}")
    stack.callback(server.stop)


def _secret(name: str) -> str:
    """A secret that is made once and kept, so that tokens outlive a restart."""
    path = DATA / name
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32))
    return path.read_text()


def welcome() -> str:
    """What can be done with the cluster that runs, command by command."""
    program = Path(sys.executable).with_name("tidegate")
    settings = f"--config {SETTINGS_FILE}"
    one, other = NODE_PORTS
    name = f"node-{len(NODE_PORTS)}"
    return "\n".join((
        f"two nodes run on ports {one} and {other}; their logs and data are in {DATA}",
        "Chat across them, in two more terminals:",
        f"  {program} chat --as alice --to bob --url ws://127.0.0.1:{one} {settings}",
        f"  {program} chat --as bob --to alice --url ws://127.0.0.1:{other} {settings}",
        "See both nodes, or have one of them drain (in words; more in docs/operations.md):",
        f"  {program} cluster status {settings}",
        f"  {program} cluster drain {name} {settings}",
        f"Kill one: pkill -9 -f 'node-name {name}'. Its clients wait for it, or for you to start it again:",
        f"  {program} serve {settings} --port {other} --node-name {name} --data-dir {DATA / name}",
        "Ctrl-C ends everything that was started here.",
    ))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
