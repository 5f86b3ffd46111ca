"""How long the conversations of a node that is killed answer nobody: until others take them over."""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from msgspec import Struct

from bench.backends import running_backends
from bench.load.accounts import user_names
from bench.load.asker import Asker
from bench.machine import Busy, Meter, choose_cores, together
from bench.node import read_metrics
from bench.processes import NodeProcess
from bench.send_cross import wait_shared
from gateway.config import Settings

CREATED_AT_ONCE = 200
"""Conversations created back to back: each takes a transaction of Cassandra's."""


class Options(Struct, frozen=True):
    """``conversations`` of one user, spread over all slots; ``repeats`` kills of the same node, which comes back."""

    conversations: int = 2_000
    repeats: int = 3
    data_parent: Path | None = None


class _Takeover(Struct, frozen=True):
    """One kill: when each conversation answered, seconds from it, and how many of them were the killed node's."""

    times_s: list[float]
    orphans: int
    busy: Busy


def measure(options: Options) -> dict[str, Any]:
    """Run the benchmark; the keys are those of the table in bench/README.md."""
    cores = choose_cores()
    with ExitStack() as stack:
        backends = stack.enter_context(running_backends(options.data_parent))
        survivor, door = stack.enter_context(backends.node("survivor", cores, options.data_parent))
        killed, _ = stack.enter_context(backends.node("killed", cores, options.data_parent))
        wait_shared(survivor, killed)
        user, *others = user_names(options.conversations + 1, "takeover")
        asker = stack.enter_context(Asker(door, user))
        conversations: list[str] = []
        for start in range(0, len(others), CREATED_AT_ONCE):
            conversations += asker.create_direct(*others[start : start + CREATED_AT_ONCE])
        done: list[_Takeover] = []
        for number in range(options.repeats):
            if number:
                killed.restart()
                wait_shared(survivor, killed)
            asker.answer_times(conversations, f"before-{number}", time.monotonic())
            meter = Meter(survivor.pid, os.getpid(), cores=cores, backends=backends.pids)
            done.append(_takeover(killed, asker, conversations, number, meter))
    orphans = [sorted(each.times_s)[-each.orphans :] for each in done]
    return {
        "conversations": options.conversations,
        "orphaned_conversations": round(median(each.orphans for each in done)),
        "lease_s": Settings().lease_s,
        "takeover_s": max(times[-1] for times in orphans),
        "median_takeover_s": median(times[-1] for times in orphans),
        "first_answer_s": median(times[0] for times in orphans),
        "others_last_answer_s": max(sorted(each.times_s)[: -each.orphans][-1] for each in done),
        "busy": {"survivor": together([each.busy for each in done])},
    }


def _takeover(killed: NodeProcess, asker: Asker, conversations: list[str], number: int, meter: Meter) -> _Takeover:
    """Kill the node and send to all conversations at once."""
    orphans = int(read_metrics(killed)["tidegate_conversations_loaded"])
    began_s = time.monotonic()
    killed.kill()
    times_s = asker.answer_times(conversations, f"after-{number}", began_s)
    return _Takeover(times_s, orphans, meter.stop())
