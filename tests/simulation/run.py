"""Runs seeds of the simulation, in as many processes as there are cores, and says what became of each.

    python -m tests.simulation.run --seeds 0-99
    python -m tests.simulation.run --seeds 17 --history run.jsonl     one seed again, with what its devices saw
    python -m tests.simulation.run --seeds 0-199 --without LEASE_CHECK --until-found

The order of sets is part of a run, so PYTHONHASHSEED is set to 0: the same seed gives the same run everywhere.
"""

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import structlog

from gateway.check.history import encode
from tests.simulation.mutations import Mutation, without
from tests.simulation.world import Result, simulate

CRITICAL = 50
"""Log level of a run: what nodes log of their troubles is of use only to who looks into one seed."""

CRASHED = "crashed: "


def run_seed(seed: int, without_name: str = "", history: str = "", log_level: int = CRITICAL) -> Result:
    """One run; a crash is a breach, too."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(log_level))
    mutation = partial(without, Mutation[without_name]) if without_name else nullcontext
    try:
        result = simulate(seed, mutation)
    except Exception as error:  # noqa: BLE001 - any crash of a node is a finding
        text = "".join(traceback.format_exception(_innermost(error), limit=-4))
        return Result(seed, [CRASHED + text], {}, 0.0, 0, [])
    if history:
        Path(history).write_bytes(b"".join(encode(record) for record in result.history))
    result.history.clear()  # nobody else looks at it, and it is large
    return result


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def run_all(seeds: Sequence[int], without_name: str, history: str, processes: int) -> Iterator[Result]:
    """All results, as they come."""
    job = partial(run_seed, without_name=without_name, history=history)
    # Each in a process of its own: nothing that one run leaves in memory can change the next.
    with Pool(processes, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(job, seeds, chunksize=1)


def seeds_of(text: str) -> range:
    """``7`` or ``0-99``."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> int:
    """0: no promise was broken (or, with ``--until-found``, one was)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=seeds_of, default=range(100), help="one seed, or first-last; 0-99 if not given")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--without", default="", choices=[each.name for each in Mutation], help="leave this out")
    parser.add_argument("--until-found", action="store_true", help="stop at the first seed that breaks a promise")
    parser.add_argument("--history", default="", help="write what the devices of one seed saw to this file")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.run", *sys.argv[1:]])
    began_s, virtual_s = time.monotonic(), 0.0
    happened: Counter[str] = Counter()
    broken = []
    done = digest = 0
    for result in run_all(options.seeds, options.without, options.history, options.processes):
        done += 1
        virtual_s += result.virtual_s
        digest ^= result.digest
        happened.update(result.happened)
        if result.breaches:
            broken.append(result.seed)
            print(f"seed {result.seed}: {len(result.breaches)} breaches", *result.breaches[:5], sep="\n  ", flush=True)
            if options.until_found:
                break
    real_s = time.monotonic() - began_s
    print("happened:", ", ".join(f"{count} {name}" for name, count in sorted(happened.items())))
    print(f"{done} seeds, {virtual_s / 60:.0f} simulated minutes in {real_s:.0f} s: {virtual_s / real_s:.0f} a minute")
    print(f"broken: {broken or 'none'}; digest {digest}")
    return int(bool(broken) != options.until_found)


if __name__ == "__main__":
    sys.exit(main())
