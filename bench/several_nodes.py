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
from gateway.process_succession import Left


def run(count: int, directory: Path, options: Mapping[str, object]) -> int:
    """Run ``count`` nodes until a signal; the worst of their exit codes. Their tokens have one secret."""
    left = Left.found()
    settings = load({**options, "data_dir": directory, "auth_secret": development_secret(directory)}, {})
    logs.configure(settings.log_format, settings.log_level)
    settings = replace(settings, processes=count)
    return processes.run(settings, _apart, lambda url: click.echo(f"listening on {url}"), left)


def _apart(settings: Settings, port: int) -> list[Settings]:
    """Nodes that share a port, each on a data directory of its own."""
    nodes = processes.settings_of_each(settings, port)
    return [replace(node, data_dir=node.data_dir / node.node_name) for node in nodes]


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), Path(sys.argv[2]), dict(option.split("=", 1) for option in sys.argv[3:])))
