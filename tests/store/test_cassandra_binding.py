"""Binding values: the driver's own ``bind`` says what has to come out."""

import string
import struct
from typing import Any

import pytest
from cassandra.cqltypes import BooleanType, BytesType, Int32Type, ListType, LongType, UTF8Type
from cassandra.protocol import ColumnMetadata
from cassandra.query import BatchStatement, PreparedStatement
from hypothesis import given
from hypothesis import strategies as st

from store.cassandra_binding import Binding

VALUES: dict[Any, st.SearchStrategy[Any]] = {
    UTF8Type: st.text(max_size=50),
    BytesType: st.binary(max_size=200),
    Int32Type: st.integers(-(2**31), 2**31 - 1),
    LongType: st.integers(-(2**63), 2**63 - 1),
    BooleanType: st.booleans(),
    ListType.apply_parameters([UTF8Type]): st.lists(st.text(max_size=9), max_size=4),
}


def prepared(kinds: list[Any], routing: list[int] | None) -> PreparedStatement:
    columns = [
        ColumnMetadata("keyspace", "table", name, kind) for name, kind in zip(string.ascii_letters, kinds, strict=False)
    ]
    return PreparedStatement(columns, b"id", routing, "INSERT", "keyspace", 5, [], b"")


@st.composite
def statements(draw: st.DrawFn) -> tuple[PreparedStatement, list[Any]]:
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=9))
    places = st.lists(st.integers(0, len(kinds) - 1), unique=True, min_size=1, max_size=3)
    return prepared(kinds, draw(st.none() | places)), [draw(VALUES[kind]) for kind in kinds]


@given(statements())
def test_the_values_are_bound_as_the_driver_binds_them(statement):
    known, values = statement
    ours, drivers = Binding(known)(values), known.bind(values)
    assert ours.values == drivers.values
    assert ours.routing_key == drivers.routing_key
    assert (ours.keyspace, ours.is_idempotent, ours.prepared_statement) == (
        drivers.keyspace,
        drivers.is_idempotent,
        drivers.prepared_statement,
    )


@given(statements())
def test_a_batch_takes_them_as_it_takes_those_of_the_driver(statement):
    known, values = statement
    ours = BatchStatement().add(Binding(known)(values))
    drivers = BatchStatement().add(known.bind(values))
    assert ours._statements_and_parameters == drivers._statements_and_parameters
    assert (ours.routing_key, ours.keyspace) == (drivers.routing_key, drivers.keyspace)


@pytest.mark.parametrize("values", [("a",), ("a", 1, 2), (1, 1), ("a", "1"), ("a", None), (None, 1), ("a", 2**31)])
def test_what_does_not_fit_is_not_bound(values):
    with pytest.raises((TypeError, ValueError, struct.error)):
        Binding(prepared([UTF8Type, Int32Type], [0]))(values)


@pytest.mark.parametrize("value", [5, "text", None])
def test_only_bytes_are_bound_as_bytes(value):
    with pytest.raises(TypeError):
        Binding(prepared([BytesType], [0]))([value])
