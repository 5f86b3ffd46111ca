"""The tree stays tidy: sizes, direction of imports, no I/O in the protocol, no private parts of trio, no real sleep."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("protocol", "store", "schema", "gateway", "bench", "examples")
LINES_MAX = 500

# What each package may import of this project.
ALLOWED = {
    "protocol": {"protocol"},
    "store": {"protocol", "store", "schema"},
    "schema": {"schema"},
    "gateway": {"protocol", "store", "schema", "gateway"},
}
# ``tidegate bench`` and ``tidegate torture`` are the doors to both: nothing else of the node may know them.
DOORS = {("gateway/cli/bench.py", "bench"), ("gateway/cli/torture.py", "bench")}
# Outside its client the protocol has nothing to do with files, sockets, clocks, threads or randomness.
PURE = {"binascii", "codecs", "collections", "enum", "hashlib", "http", "msgspec", "protocol", "re", "typing"}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of all modules that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_client(path: Path) -> bool:
    return path.is_relative_to(ROOT / "protocol" / "client")


def test_there_are_files_to_check() -> None:
    for folder in ("protocol", "store", "gateway", "tests"):
        assert len(python_files(folder)) >= 3, folder


def test_files_are_short() -> None:
    long = {
        shown(path): lines
        for path in python_files(*SOURCES, "tests")
        if (lines := len(path.read_text().splitlines())) > LINES_MAX
    }
    assert not long, f"split these files (at most {LINES_MAX} lines)"


def test_imports_go_one_way() -> None:
    wrong = [
        f"{shown(path)} imports {name}"
        for package, allowed in ALLOWED.items()
        for path in python_files(package)
        for name in imports_of(tree_of(path))
        if (top := name.partition(".")[0]) in {*SOURCES, "tests"}
        and top not in allowed
        and (shown(path), top) not in DOORS
    ]
    assert not wrong


def test_protocol_does_no_input_or_output() -> None:
    files = [path for path in python_files("protocol") if not is_client(path)]
    assert len(files) >= 6
    for path in files:
        tree = tree_of(path)
        names = set(imports_of(tree))
        assert {name.partition(".")[0] for name in names} <= PURE, shown(path)
        assert not any(name.startswith(("protocol.client", "http.client", "http.server")) for name in names), shown(
            path
        )
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & {"open", "print", "input", "exec", "eval", "__import__"}, shown(path)


def test_protocol_knows_no_database() -> None:
    for path in python_files("protocol"):
        assert not {"redis", "cassandra"} & {name.partition(".")[0] for name in imports_of(tree_of(path))}


def attribute_chain(node: ast.Attribute) -> list[str]:
    """``trio.lowlevel.x`` as its names; empty when the chain does not begin with a name."""
    names: list[str] = []
    part: ast.expr = node
    while isinstance(part, ast.Attribute):
        names.append(part.attr)
        part = part.value
    return [part.id, *reversed(names)] if isinstance(part, ast.Name) else []


def private(names: list[str]) -> bool:
    return names[:1] in (["trio"], ["trio_websocket"]) and any(name.startswith("_") for name in names[1:])


def test_no_private_attributes_of_trio() -> None:
    found = []
    for path in python_files(*SOURCES, "tests"):
        tree = tree_of(path)
        found += [f"{shown(path)}: {name}" for name in imports_of(tree) if private(name.split("."))]
        found += [
            f"{shown(path)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and private(attribute_chain(node))
        ]
    assert not found


def test_tests_do_not_sleep() -> None:
    """Real sleeping never; trio's only where the file's clock is virtual."""
    found = []
    for path in python_files("tests"):
        text = path.read_text()
        simulated = path.is_relative_to(ROOT / "tests" / "simulation")
        virtual = simulated or "autojump_clock" in text or "MockClock" in text
        for node in ast.walk(tree_of(path)):
            chain = (
                attribute_chain(node.func)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                else []
            )
            if chain in (["time", "sleep"], ["asyncio", "sleep"]) or (chain == ["trio", "sleep"] and not virtual):
                found.append(f"{shown(path)}:{node.lineno}: {'.'.join(chain)}")
        found += [
            f"{shown(path)}: {name}" for name in imports_of(tree_of(path)) if name in ("time.sleep", "trio.sleep")
        ]
    assert not found


@pytest.mark.parametrize("mark", ["TO" + "DO", "FIX" + "ME", "XX" + "X"])
def test_nothing_is_left_for_later(mark: str) -> None:
    found = [shown(path) for path in python_files(*SOURCES, "tests") if re.search(rf"\b{mark}\b", path.read_text())]
    assert not found


def test_modules_are_named_for_what_they_hold() -> None:
    assert not [
        shown(path) for path in python_files(*SOURCES) if path.stem in ("utils", "util", "helpers", "misc", "common")
    ]


def test_every_module_says_what_it_is() -> None:
    silent = [
        shown(path)
        for path in python_files(*SOURCES)
        if path.read_text().strip() and not ast.get_docstring(tree_of(path))
    ]
    assert not silent
