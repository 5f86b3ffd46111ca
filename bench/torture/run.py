"""One seeded run: talk, do harm, put it right, wait for calm, read everything, judge."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from bench.torture.cluster import TrialCluster
from bench.torture.load import Load
from bench.torture.node import LEASE_LOST
from bench.torture.scenarios import FAULTS, ack_s, after_kill_s
from bench.torture.trial import FORWARD_S, RETURN_MARGIN_S, Trial
from gateway.check.checker import check
from gateway.check.history import Record, encode, parse
from gateway.check.recorder import Recorder
from gateway.check.report import Report
from protocol.client import ClientError

WARM_S: Final = 1.0
"""Seconds of talk before the first fault, and after the last."""

SPREAD_S: Final = 3.0
"""Seconds within which the faults of a run begin."""

FAULTS_MAX: Final = 3
"""Faults of a run."""

CALM_S: Final = 30.0
"""Seconds after the last fault within which everything has to be answered, and has to have reached everybody."""

LOST_S: Final = 90.0
"""Seconds beyond these after which what has not come is lost; until then it is late."""

RUN_MAX_S: Final = 300.0
"""Seconds after which a run has failed, whatever it waits for."""


EXPECTED_ERRORS: Final = frozenset((LEASE_LOST, "store in trouble"))
"""Errors that nodes log as they should, when they were away for too long, or Cassandra was."""


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        seed: makes the same choices again.
        names: the faults, by name.
        faults: one line for each fault.
        breaches: one line for each promise broken.
        excused: one line for each time not kept on a machine that was too busy to tell.
        counts: as ``Report.counts``.
        sometimes: as ``Report.sometimes``.
        log: how often the nodes logged what, by event.
        outages_s: how long conversations were away after each kill, seconds.
        return_s: how long they took to answer after the last fault was put right, seconds.
        seconds: how long the run took.
    """

    seed: int
    names: tuple[str, ...]
    faults: tuple[str, ...]
    breaches: tuple[str, ...]
    excused: tuple[str, ...]
    counts: dict[str, int]
    sometimes: dict[str, int]
    log: dict[str, int]
    outages_s: tuple[float, ...]
    return_s: float
    seconds: float


def plan(seed: int, names: Sequence[str]) -> tuple[tuple[str, ...], random.Random]:
    """Which faults the run of a seed has, and what decides the rest of it."""
    rng = random.Random(seed)
    count = min(len(names), rng.randint(1, FAULTS_MAX))
    return tuple(rng.sample(sorted(names), count)), rng


async def run(
    cluster: TrialCluster, seed: int, names: Sequence[str], directory: Path, say: Callable[[str], None],
    talk_s: float = WARM_S,
) -> Outcome:  # fmt: skip
    """Do the run of a seed, with some of the faults named. Its history stays in ``directory`` if it broke a promise."""
    chosen, rng = plan(seed, names)
    begun_s = trio.current_time()
    before, crashes = cluster.logged(), len(cluster.crashes)
    clients, spoken = directory / f"run-{seed}.clients.jsonl", cluster.spoken_bytes()
    with Recorder(clients) as recorder:
        load = Load(cluster, recorder, rng)
        trial = Trial(cluster, recorder, rng, say, load.prober, load.token(load.prober.user), after_kill_s(chosen))
        return_s = float("inf")
        with trio.move_on_after(RUN_MAX_S) as patience:
            try:
                return_s = await _live(trial, load, chosen, talk_s)
            except* ClientError as group:
                for error in group.exceptions:
                    trial.breach("unanswered", f"a client gave up: {error}")
        if patience.cancelled_caught:
            trial.breach("stuck", f"the run did not end within {RUN_MAX_S:g} s")
    path = directory / f"run-{seed}.jsonl"
    report = judge(path, clients, cluster.spoken_since(spoken), load.conversations)
    log = cluster.logged() - before
    _expect_no_takeover(trial, chosen, log)
    _expect_no_errors(trial, log)
    for crash in cluster.crashes[crashes:]:
        trial.breach("crash", crash)
    breaches = (*trial.breaches, *(f"{each.name}: {each.conversation} {each.what}" for each in report.breaches))
    clients.unlink()
    if not breaches:
        path.unlink()
    return Outcome(
        seed, chosen, tuple(trial.faults), breaches, tuple(trial.excused), report.counts, report.sometimes, dict(log),
        tuple(trial.outages_s), return_s, trio.current_time() - begun_s,
    )  # fmt: skip


async def _live(trial: Trial, load: Load, chosen: Sequence[str], talk_s: float) -> float:
    """Everything from the first connection to the last read; how long conversations took to answer after the harm."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trial.keep_time)
        await load.connect(nursery)
        async with trio.open_nursery() as talk:
            with load.talking(talk):
                await trio.sleep(talk_s)
                talk.start_soon(load.remove_somebody)
                await _harm(trial, chosen)
                healed_s = trio.current_time()
                return_s = await trial.answering()
                allowed_s = trial.lease_s + RETURN_MARGIN_S + FORWARD_S
                if return_s > allowed_s:
                    trial.late("late-return", f"{return_s:.1f} s after all was well; allowed are {allowed_s:g} s")
                await trio.sleep(talk_s)
            talk.cancel_scope.deadline = healed_s + CALM_S
        if talk.cancel_scope.cancelled_caught:
            trial.late("unanswered", f"{load.unanswered()} messages {CALM_S:g} s after all was well")
        look_for_long_waits(trial, load, chosen)
        await calm(trial, load, healed_s + CALM_S)
        for device in load.everybody:
            for refusal in device.refusals:
                trial.breach("refused", refusal)
        for conversation in load.conversations:
            await load.prober.read_all(conversation)
        nursery.cancel_scope.cancel()
    return return_s


async def _harm(trial: Trial, chosen: Sequence[str]) -> None:
    """Do all faults, each beginning at a moment of its own, and wait until every one was put right."""
    async with trio.open_nursery() as nursery:
        for name in chosen:
            nursery.start_soon(_harm_later, trial, name, trial.rng.uniform(0, SPREAD_S))


async def _harm_later(trial: Trial, name: str, delay_s: float) -> None:
    await trio.sleep(delay_s)
    await FAULTS[name].scenario(trial)


def look_for_long_waits(trial: Trial, load: Load, chosen: Sequence[str]) -> None:
    """Whether all that was acknowledged was so as soon as these faults allow."""
    longest_s, allowed_s = max(device.longest_ack_s for device in load.everybody), ack_s(chosen)
    if longest_s > allowed_s:
        trial.late("late-ack", f"an acknowledgement came after {longest_s:.1f} s; allowed are {allowed_s:g} s")


async def calm(trial: Trial, load: Load, deadline_s: float) -> None:
    """Wait until everybody has heard everything: in time, or late (after ``deadline_s``), or never."""
    while unheard := load.unheard():
        if trio.current_time() > deadline_s + LOST_S:
            for what in unheard:
                trial.breach("leak", what)
            break
        await trio.sleep(0.1)
    late_s = trio.current_time() - deadline_s
    if not unheard and late_s > 0:
        trial.late(
            "late-delivery", f"all had heard all {CALM_S + late_s:.1f} s after all was well; allowed are {CALM_S:g} s"
        )
    for device in load.removed:
        device.leave_out_of_quiet()
    trial.recorder.record("info", "quiet", "torture")


def judge(path: Path, clients: Path, spoken: bytes, conversations: Sequence[str]) -> Report:
    """The verdict on what clients recorded and owners spoke in these conversations; both are left at ``path``."""
    wanted = frozenset(conversations)
    owners: list[Record] = parse(spoken.splitlines()) if spoken.strip() else []
    with path.open("wb") as file:
        file.write(clients.read_bytes())
        file.writelines(encode(record) for record in owners if record.conversation in wanted)
    with path.open("rb") as lines:
        return check(parse(lines))


def _expect_no_takeover(trial: Trial, chosen: Sequence[str], log: Counter[str]) -> None:
    if not any(FAULTS[name].loses_lease for name in chosen) and log["node marked dead"]:
        trial.late("takeover", f"{log['node marked dead']} nodes marked dead, though none was away for its lease")


def _expect_no_errors(trial: Trial, log: Counter[str]) -> None:
    for event, count in log.items():
        if event.startswith("error: ") and event.removeprefix("error: ") not in EXPECTED_ERRORS:
            trial.breach("error", f"{count} times in the nodes' logs: {event.removeprefix('error: ')}")
