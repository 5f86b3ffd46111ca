"""Commands that must fail: their exit code and the one line that they say."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
USAGE = 2
UNAVAILABLE = 69
DEADLINE_S = 240


def fails(*options: str, prefix: Sequence[str] = ()) -> tuple[int, str]:
    """Start a node that must not start, by way of a ``prefix``; its exit code and its one line besides log lines."""
    command = [*prefix, sys.executable, "-m", "gateway.cli.main", "serve", "--port", "0", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr, ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith("tidegate: ")]
    assert len(said) == 1, ended.stderr
    return ended.returncode, said[0]
