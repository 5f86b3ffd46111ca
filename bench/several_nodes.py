"""Several nodes behind one port, each on a data directory of its own: ``python -m bench.several_nodes N DIRECTORY …``.

In service, nodes that share a port share a store. What connections cost, and what becomes of processes that die, does
not depend on it; here no store has to be there. Options are those of ``tidegate serve``, given as NAME=VALUE.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import click
from msgspec.structs import replace

from gateway import processes
from gateway.auth.development import development_secret
from gateway.config import Settings
from gateway.config_load import load
from gateway.observe import logs
from gateway.process_launch import held_port


def run(count: int, directory: Path, options: Mapping[str, object]) -> int:
    """Run ``count`` nodes until a signal; the worst of their exit codes. Their tokens have one secret."""
    settings = load({**options, "data_dir": directory, "auth_secret": development_secret(directory)}, {})
    logs.configure(settings.log_format, settings.log_level)
    with held_port(settings.host, settings.port) as (address, port):
        settings = replace(settings, processes=count)
        nodes = [_apart(node) for node in processes.settings_of_each(settings, port)]
        return processes.supervise(nodes, lambda: click.echo(f"listening on http://{address}:{port}"))


def _apart(settings: Settings) -> Settings:
    """The same node on a data directory of its own."""
    return replace(settings, data_dir=settings.data_dir / settings.node_name)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), Path(sys.argv[2]), dict(option.split("=", 1) for option in sys.argv[3:])))
