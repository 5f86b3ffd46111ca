"""Processes of their own, for tests that kill a store or take its disk away."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent

REPOSITORY = Path(__file__).parents[2]

_PROGRAM = """\
import os, resource, sys
from pathlib import Path
import trio
from store.embedded import EmbeddedStore
from store.interface import NotWritten, OutcomeUnknown
from tests.store.conformance import EVERYTHING, make, seqs
from tests.store.entries import append
from tests.store.outcomes import Outcomes, append_all

async def main():
    store = EmbeddedStore.open(Path(sys.argv[1]))
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
{body}
        nursery.cancel_scope.cancel()

trio.run(main)
"""


def run_with_store(data_dir: Path, body: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Run statements with an open ``store`` in a process of its own, behind a command such as strace."""
    program = _PROGRAM.format(body=indent(dedent(body), " " * 8))
    command = [*prefix, sys.executable, "-c", program, str(data_dir)]
    return subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=240)
