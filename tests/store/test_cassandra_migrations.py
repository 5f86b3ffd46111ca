"""Migrating the tables of a cluster while Cassandra fails, or another program does so; on a session that pretends."""

from collections.abc import Callable
from typing import Any

import pytest
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionShutdown
from cassandra.protocol import OverloadedErrorMessage, ServerError

from store.cassandra_migrations import migrate, schema_number
from store.interface import Unavailable

UNKNOWN_TABLE = ServerError(0, "java.lang.IllegalArgumentException: Unknown CF 98e3eac0", None)


class PretendedSession:
    """Notes statements, and answers each as it is told to."""

    def __init__(self, answer: Callable[[str], list[tuple[Any, ...]]]) -> None:
        self.asked: list[str] = []
        self._answer = answer

    def execute(self, statement: Any, *_args: object, **_options: object) -> list[tuple[Any, ...]]:
        text = getattr(statement, "query_string", statement)
        self.asked.append(text)
        return self._answer(text)


@pytest.mark.parametrize(
    "error",
    [
        UNKNOWN_TABLE,
        OverloadedErrorMessage(0x1001, "too much to do", None),
        NoHostAvailable("Unable to complete the operation against any hosts", {}),
        ConnectionShutdown("Connection to 127.0.0.1:9042 was closed"),
    ],
)
def test_a_failing_cassandra_is_not_our_bug(error: Exception) -> None:
    def fail(_text: str) -> list[tuple[Any, ...]]:
        raise error

    with pytest.raises(Unavailable, match="the schema's number cannot be read"):
        schema_number(PretendedSession(fail))
    with pytest.raises(Unavailable, match="run it again"):
        migrate(PretendedSession(fail), "k", lambda _migration: None)


def test_a_table_that_another_program_is_just_making_is_not_read_before_it_is_there() -> None:
    made: set[str] = set()

    def answer(text: str) -> list[tuple[Any, ...]]:
        if text.startswith("CREATE TABLE IF NOT EXISTS schema_"):
            made.add(text.split()[5])
        elif "schema_migrations" in text and "schema_migrations" not in made:
            raise UNKNOWN_TABLE
        elif "schema_lock" in text:
            raise OverloadedErrorMessage(0x1001, "that far it came", None)
        return []

    with pytest.raises(Unavailable, match="that far it came"):
        migrate(PretendedSession(answer), "k", lambda _migration: None)
