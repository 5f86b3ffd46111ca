"""Hypothesis strategies for frames, built from the frames' own types, so that a new frame is tested by existing."""

from typing import Any, get_args

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from protocol import frames

COMMANDS: tuple[type, ...] = get_args(frames.Command)
REPLIES: tuple[type, ...] = get_args(frames.Reply)
PUSHES: tuple[type, ...] = get_args(frames.Push)
FRAMES = (*COMMANDS, *REPLIES, *PUSHES)


def tag_of(frame: type) -> int:
    tag = frame.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


def instances(frame: type, *, json: bool = False) -> st.SearchStrategy[Any]:
    """Any valid instance of ``frame``; raw entries in it are encoded as msgpack, or as JSON."""
    return _values(inspect.type_info(frame), json)


def _values(kind: inspect.Type, json: bool) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType(ge=ge, le=le):
            return st.integers(-(2**53) if ge is None else ge, 2**53 if le is None else le)
        case inspect.FloatType():
            return st.floats(allow_nan=False, allow_infinity=False)
        case inspect.StrType(min_length=least, max_length=most):
            return st.text(min_size=least or 0, max_size=min(most or 20, 20))
        case inspect.ListType(item_type=item):
            return st.lists(_values(item, json), max_size=4)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(_values(key, json), _values(value, json), max_size=4)
        case inspect.EnumType(cls=enum):
            return st.sampled_from(list(enum))
        case inspect.NoneType():
            return st.none()
        case inspect.UnionType(types=types):  # a decoder never chooses Raw where there is another
            return st.one_of([_values(part, json) for part in types if not isinstance(part, inspect.RawType)])
        case inspect.RawType():
            encode = msgspec.json.encode if json else msgspec.msgpack.encode
            return instances(frames.Entry, json=json).map(lambda entry: msgspec.Raw(encode(entry)))
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, *(_values(field.type, json) for field in fields))
    raise AssertionError(f"no strategy for {kind}")
