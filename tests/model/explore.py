"""Walks through every state that a small world can reach, and tells the shortest way to a broken promise.

A world is a handful of processes and stores, written as plain tuples. Nothing in it is random and nothing has a fixed
speed: whatever can happen next may happen next, or never. So a process that pauses, a message that is late and a crash
need no code of their own; they are the steps that are not taken.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

STATES_MAX = 6_000_000  # about 3 GB of states: a world that needs more has to be split

Words = tuple[Any, ...]
"""What happened, as a format string and its arguments; it is put together only for a path that is told."""


class Breach(NamedTuple):
    """Stands in the place of a next state: the step leads to what must never happen."""

    what: str


State = tuple[Any, ...]
Step = tuple[Words, State | Breach]


class World(Protocol):
    """What can be explored."""

    def start(self) -> State:
        """The only first state."""

    def steps(self, state: State) -> Iterator[Step]:
        """All that may happen next."""


class TooLarge(Exception):
    """The world has more states than the limit: nothing is known about it."""


class Result(NamedTuple):
    """What became of a walk. ``path`` is empty if the world holds; else the steps to the breach, in words."""

    states: int
    path: list[str]
    happened: frozenset[str]  # the format strings of all steps seen: a world in which little happens proves little

    @property
    def holds(self) -> bool:
        """Whether all states were visited and nothing was broken."""
        return not self.path


def explore(world: World, states_max: int = STATES_MAX) -> Result:
    """Visit every state, nearest first, until none is left or a promise is broken.

    Raises:
        TooLarge: there are more than ``states_max`` states. A walk is never reported as holding unless it is complete.
    """
    start = world.start()
    came_from: dict[State, tuple[State, Words] | None] = {start: None}
    happened: set[str] = set()
    frontier = [start]
    while frontier:
        following: list[State] = []
        for state in frontier:
            for words, new in world.steps(state):
                happened.add(words[0])
                if isinstance(new, Breach):
                    path = [*_path(came_from, state), f"{_told(words)}: {new.what}"]
                    return Result(len(came_from), path, frozenset(happened))
                if new not in came_from:
                    came_from[new] = (state, words)
                    following.append(new)
        if len(came_from) > states_max:
            raise TooLarge(f"more than {states_max} states: choose smaller bounds")
        frontier = following
    return Result(len(came_from), [], frozenset(happened))


def _told(words: Words) -> str:
    return str(words[0]).format(*words[1:])


def _path(came_from: dict[State, tuple[State, Words] | None], state: State) -> list[str]:
    path: list[str] = []
    while (step := came_from[state]) is not None:
        state, words = step
        path.append(_told(words))
    return path[::-1]


def report(
    about: str, model: Callable[..., World], worlds: dict[str, Any], large: dict[str, Any], shown_in: dict[Any, str]
) -> None:
    """The command line of a model: check all worlds, then show what happens without each of its rules.

    Args:
        about: one line for the help text.
        model: makes a world of its bounds and perhaps a rule to leave out.
        worlds: bounds by name.
        large: the same for ``--large``.
        shown_in: for each rule the world in which its absence shows.
    """
    rules = {rule.name: rule for rule in shown_in}
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("rule", nargs="*", help="only show what happens without these: " + ", ".join(rules))
    parser.add_argument("--large", action="store_true", help="check the larger worlds, too (minutes, some GB)")
    options = parser.parse_args()
    if unknown := [name for name in options.rule if name not in rules]:
        parser.error(f"there is no rule {', '.join(unknown)}; the rules are: {', '.join(rules)}")
    for name, bounds in ({} if options.rule else worlds | large if options.large else worlds).items():
        _show(name, explore(model(bounds)))
    for name in options.rule or rules:
        result = explore(model(worlds[shown_in[rules[name]]], rules[name]))
        _show(f"without {name} ({rules[name].value})", result)


def _show(about: str, result: Result) -> None:
    print(f"{about}: {'holds' if result.holds else 'BROKEN'} ({result.states} states)", flush=True)
    for number, line in enumerate(result.path, 1):
        print(f"  {number:3}. {line}")
