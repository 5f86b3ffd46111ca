"""Fuzz the decoders: ``python -m tests.fuzz.run --seconds 60``, or with ``--target NAME`` one of them.

Each target runs in a process of its own, since a fuzzer ends its process at the first finding. A finding is printed as
the traceback and the input in hex; ``tidegate decode`` or the target's function show more of it.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
INPUT_BYTES_MAX = 2_048
MEMORY_MIB_MAX = 1_024
GRACE_S = 60  # beyond the time asked for, to start and to end


def fuzz_here(target: str, seconds: int, seed: int, folder: Path) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["protocol", "gateway", "tests"]):
        from tests.fuzz import targets

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(targets.seeds(target)):
        (corpus / f"seed-{number}").write_bytes(data)
    function = targets.TARGETS.get(target, targets.fuzz_planted)
    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-artifact_prefix={folder}/finding-",
        "-timeout=10",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], function)
    atheris.Fuzz()


def fuzz(target: str, seconds: int, seed: int) -> bool:
    """Fuzz one target in a process of its own; False, and a report on stdout, if something was found."""
    with tempfile.TemporaryDirectory(prefix="tidegate-fuzz-") as name:
        folder = Path(name)
        arguments = ["--here", name, "--target", target, "--seconds", str(seconds), "--seed", str(seed)]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "tests.fuzz.run", *arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds + GRACE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            print(f"{target}: did not end within {seconds + GRACE_S} s (seed {seed})")
            return False
        output = done.stdout.decode(errors="replace")
        findings = sorted(folder.glob("finding-*"))
        executions = next((line.split()[-1] for line in output.splitlines() if "number_of_executed_units" in line), "0")
        if done.returncode == 0 and not findings and int(executions) > 0:
            print(f"{target}: nothing found in {executions} inputs, {seconds} s (seed {seed})")
            return True
        print(output)
        for finding in findings:
            print(f"{target}: input {finding.read_bytes().hex()}")
        print(f"{target}: failed with exit code {done.returncode} (seed {seed})")
        return False


def main() -> int:
    """Exit code 0: nothing found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description="Fuzz the decoders.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", help="only this one")
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31), help="to repeat a run")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        fuzz_here(options.target, options.seconds, options.seed, options.here)
    # Not before: what is imported uninstrumented stays so, and the fuzzer would be blind.
    from tests.fuzz.targets import TARGETS

    allowed = [*TARGETS, "planted"]
    if options.target not in (None, *allowed):
        parser.error(f"there is no target {options.target!r}: choose from {', '.join(allowed)}")
    names = [options.target] if options.target else list(TARGETS)
    results = [fuzz(name, options.seconds, options.seed) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
