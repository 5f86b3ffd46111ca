"""RFC 6455 as the Autobahn test suite reads it: its core cases (without compression), run by kosoku."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.process.echo_server import serve_echo

pytestmark = [pytest.mark.process, pytest.mark.slow]

CASES = 301
GOOD = {"OK", "INFORMATIONAL"}
"""Not NON-STRICT: where the suite forgives a late refusal of bad UTF-8, this framing refuses at the first byte."""


async def test_all_core_cases_of_the_autobahn_suite_pass(nursery: trio.Nursery, tmp_path: Path) -> None:
    port = await nursery.start(serve_echo)
    kosoku = Path(sys.executable).with_name("kosoku")
    command = [str(kosoku), "-m", "fuzzingclient", f"ws://127.0.0.1:{port}", "-x", "12.*", "-x", "13.*"]
    with trio.fail_after(240):
        run = await trio.run_process(
            [*command, "-o", str(tmp_path)], check=False, capture_stdout=True, stderr=subprocess.STDOUT
        )
    (cases,) = json.loads((tmp_path / "index.json").read_text(encoding="utf-8")).values()
    bad = {name: case for name, case in cases.items() if not {case["behavior"], case["behaviorClose"]} <= GOOD}
    assert not bad
    assert len(cases) == CASES
    assert run.returncode == 0, run.stdout
