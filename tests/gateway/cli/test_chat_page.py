"""docs/chat.md names every event that ``tidegate chat --json`` can print, with all its fields."""

import re
import typing
from pathlib import Path

import msgspec

from gateway.cli.chat_script import History
from protocol.client import events, states

PAGE = (Path(__file__).parents[3] / "docs" / "chat.md").read_text()


def fields_of(structs: typing.Iterable[type[msgspec.Struct]]) -> dict[str, list[str]]:
    return {str(each.__struct_config__.tag): list(each.__struct_fields__) for each in structs}


def table_below(head: str) -> dict[str, list[str]]:
    """The first two cells of a table's rows: what is in backquotes there."""
    body = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    rows = [re.findall(r"`(\w+)`", " ".join(line.split("|")[1:3])) for line in body]
    return {row[0]: row[1:] for row in rows}


def test_every_event_is_there_with_its_fields() -> None:
    told = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, events.Event)]
    told = [each for each in told if each not in (events.Event, events.EntryEvent)]
    assert table_below("| event | fields |") == fields_of([*told, History])


def test_every_state_is_there_with_its_fields() -> None:
    assert table_below("| state | fields |") == fields_of(typing.get_args(states.State))
