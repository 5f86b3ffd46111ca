"""What cluster is started; none is here."""

import pytest

from bench.torture.cluster import Options


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        (Options(), 1),
        (Options(cassandra_nodes=3), 3),
        (Options(cassandra_hosts=("a",)), 1),
        (Options(cassandra_hosts=("a", "b", "c")), 3),
        (Options(cassandra_hosts=("a", "b", "c", "d")), 3),
    ],
)
def test_as_many_copies_as_there_are_nodes_to_have_them(options: Options, copies: int) -> None:
    assert options.copies == copies
