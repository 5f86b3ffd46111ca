import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import trio

from gateway.cli import main as cli
from gateway.cli.errors import CliError

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Put a function in the place of ``tidegate check``."""

    def put(function: Callable[[], object]) -> None:
        replacement = click.command()(function)
        monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: replacement)

    return put


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        assert run(*arguments) == 0
        out = capsys.readouterr().out
        for name, line in cli.COMMANDS.items():
            assert name in out
            assert line in out
    assert run("--version") == 0
    assert capsys.readouterr().out == "tidegate 0.1.0\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_is_there_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = importlib.import_module(f"gateway.cli.{name}").command
    assert isinstance(command, click.Command)
    assert command.help
    assert run(name, "--help") == 0
    out = capsys.readouterr().out
    assert f"Usage: tidegate {name}" in out
    for parameter in getattr(command, "params", ()):
        assert not isinstance(parameter, click.Option) or parameter.help, f"{parameter.name} has no help"


def test_help_imports_no_heavy_package() -> None:
    """A process of its own, because this one has imported everything by now."""
    code = (
        "import sys\n"
        "from gateway.cli import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'trio', 'cryptography', 'jwt', 'hypercorn', 'structlog', 'prometheus_client'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("sevre",),
            "tidegate: No such command 'sevre'. Did you mean 'serve'? (tidegate --help shows what is allowed)",
        ),
        (("serv", "--port", "1"), "tidegate: No such command 'serv'. Did you mean 'serve'? (tidegate --help"),
        (("xyzzy",), "tidegate: No such command 'xyzzy' (tidegate --help shows what is allowed)"),
        (("cluster", "statu"), "tidegate: No such command 'statu'. Did you mean 'status'? (tidegate cluster --help"),
        (("bench", "densty"), "tidegate: No such command 'densty'. Did you mean 'density'? (tidegate bench --help"),
        (("--prot",), "tidegate: No such option '--prot'"),
        (("--versio",), "tidegate: No such option '--versio'. Did you mean '--version'?"),
        (("token",), "tidegate: Missing argument 'USER' (tidegate token --help shows what is allowed)"),
        (("serve", "--prot", "1"), "tidegate: No such option '--prot'"),
        (("serve", "--port", "x"), "tidegate: port is 'x' (from --port); allowed: a whole number from 0 to 65535"),
    ],
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1


def test_a_package_of_the_extra_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'psutil'", name="psutil.more")

    monkeypatch.setattr(cli.importlib, "import_module", missing)
    assert run("bench") == 69
    assert capsys.readouterr().err == (
        "tidegate: this needs the package psutil, which is not installed; run: make install-dev "
        "(or pip install 'tidegate[bench]')\n"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        *((f"['{name}', '--help']", 0, "Usage: tidegate") for name in ("cluster", "migrate", "serve")),
        ("['cluster', 'drain', '--help']", 0, "Usage: tidegate"),
        ("['migrate']", 69, "this needs the package cassandra, which is not installed; run: make install-dev"),
        (
            "['serve', '--store', 'cassandra', '--port', '0']",
            69,
            "this needs the package cassandra, which is not installed",
        ),
    ],
)
def test_without_the_drivers_of_a_cluster_help_helps_and_the_rest_says_what_is_missing(
    tmp_path: Path, arguments: str, code: int, line: str
) -> None:
    """As after ``make run``. A process of its own, because this one has imported the drivers."""
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "class Missing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in {'cassandra', 'redis'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from gateway.cli import main\n"
        f"main.main({arguments})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == code, done.stderr
    assert line in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_is_one_line_with_its_exit_code(
    command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise CliError("it is\nnot there", 69)

    command(fail)
    assert run("check") == 69
    assert capsys.readouterr().err == "tidegate: it is not there\n"


def test_an_error_from_within_nurseries_is_one_line_too(
    command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail() -> None:
        async with trio.open_nursery(), trio.open_nursery():
            raise CliError("gone")

    command(lambda: trio.run(fail))
    assert run("check") == 1
    assert capsys.readouterr().err == "tidegate: gone\n"


def test_a_bug_is_called_a_bug(
    command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("oops")

    command(fail)
    assert run("check") == 70
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith(
        "tidegate: this is a bug in tidegate (ZeroDivisionError); please report it with the lines above\n"
    )


def test_interrupted(command: Callable[[Callable[[], object]], None], capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    command(interrupt)
    assert run("check") == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (3, 3), ("text", 0)])
def test_a_number_returned_is_the_exit_code(
    result: object, code: int, command: Callable[[Callable[[], object]], None]
) -> None:
    command(lambda: result)
    assert run("check") == code


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{sys.executable} -m gateway.cli.main config | head -c 1; echo rc ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.stderr == ""
