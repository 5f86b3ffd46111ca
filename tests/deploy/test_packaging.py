"""What is deployed fits what it deploys: settings that exist, limits that agree, files that are there."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from gateway.cli.main import COMMANDS
from gateway.cli.migrate import command as migrate_command
from gateway.config import Settings
from gateway.config_load import OTHER_VARIABLES, SETTINGS, load

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "systemd" / "tidegate.service"
COMPOSE = ROOT / "deploy" / "container" / "compose.yaml"
IMAGE = ROOT / "deploy" / "container" / "Containerfile"
HAPROXY = ROOT / "deploy" / "haproxy" / "haproxy.cfg"

GIVEN = {
    "TIDEGATE_AUTH_SECRET": "a" * 32,
    "TIDEGATE_CLUSTER_SECRET": "c" * 32,
    "REDIS_PASSWORD": "r" * 16,
    "CERTIFICATE": "/path/to.pem",
}
"""What the head of the compose file tells people to set."""


def uncommented(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))


def filled_in(text: str) -> str:
    """As compose fills in its environment; a variable that nobody is told to set is a KeyError."""
    return re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda found: GIVEN[found[1]], text)


def variables_of(path: Path) -> dict[str, str]:
    """TIDEGATE_ and LB_ variables that a file sets, quotes removed."""
    found = re.findall(r"\b((?:TIDEGATE|LB)_\w+)\s*[:=]\s*(.*?)\s*\\?$", filled_in(uncommented(path)), re.MULTILINE)
    return {name: value.strip('"') for name, value in found}


def composed() -> dict:
    """The compose file, as compose reads it."""
    return yaml.safe_load(filled_in(COMPOSE.read_text()))


class TestUnit:
    def test_systemd_has_nothing_to_say_against_it(self, tmp_path: Path) -> None:
        program = shutil.which("systemd-analyze")
        if program is None:
            pytest.skip("systemd-analyze is missing (the package systemd)")
        here = tmp_path / UNIT.name
        here.write_text(UNIT.read_text().replace("/opt/tidegate/.venv/bin/tidegate", sys.executable))
        done = subprocess.run(
            [program, "verify", "--man=no", str(here)], capture_output=True, text=True, timeout=60, check=False
        )
        complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
        assert (done.returncode, complaints) == (0, [])

    def test_its_patience_is_longer_than_a_drain(self) -> None:
        text = UNIT.read_text()
        stop_s = int(re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[1])
        assert stop_s >= Settings().drain_grace_s + 10
        for line in ("Restart=always", "KillSignal=SIGTERM", "LimitNOFILE=1048576", "RestartPreventExitStatus=2"):
            assert f"\n{line}\n" in text

    def test_it_calls_commands_and_sets_variables_that_exist(self) -> None:
        commands = re.findall(r"^Exec\w+=\S+/tidegate (\w+)(.*)$", UNIT.read_text(), re.MULTILINE)
        assert [name for name, _ in commands] == ["serve", "upgrade"]
        assert {name for name, _ in commands} <= set(COMMANDS)
        options = set(re.findall(r"--[\w-]+", " ".join(rest for _, rest in commands)))
        assert options - {"--pid"} <= {setting.option for setting in SETTINGS.values()}
        known = {setting.variable for setting in SETTINGS.values()} | OTHER_VARIABLES
        assert set(re.findall(r"TIDEGATE_\w+", UNIT.read_text())) <= known


class TestCompose:
    def test_its_nodes_have_acceptable_settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        variables = {name: value for name, value in variables_of(COMPOSE).items() if name.startswith("TIDEGATE_")}
        settings = load({}, variables)
        assert settings.store == "cassandra"
        assert settings.proxy_protocol_from == ["10.83.0.10"]
        assert re.search(r"balancer:(?s:.*?)ipv4_address: 10\.83\.0\.10\b", COMPOSE.read_text())
        patience_s = int(re.search(r"^  stop_grace_period: (\d+)s$", COMPOSE.read_text(), re.MULTILINE)[1])
        assert patience_s > settings.drain_grace_s > settings.drain_lead_s

    def test_the_load_balancer_is_told_what_it_asks(self) -> None:
        told = {name for name in variables_of(COMPOSE) if name.startswith("LB_")}
        asked = set(re.findall(r"presetenv (LB_\w+)", HAPROXY.read_text()))
        assert {"LB_FRONT", "LB_CERTIFICATE", "LB_NODE_1", "LB_NODE_2"} <= told <= asked

    def test_its_structure(self) -> None:
        compose = composed()
        services = compose["services"]
        assert set(services) == {"migrate", "node1", "node2", "cassandra", "redis", "balancer"}
        for name, service in services.items():
            assert "image" in service, name
            depends = service.get("depends_on", [])
            assert set(depends) <= set(services), name
            for waited_for, how in depends.items() if isinstance(depends, dict) else ():
                ends = how["condition"] == "service_completed_successfully"
                assert ends or "healthcheck" in services[waited_for], waited_for
                assert not (ends and "restart" in services[waited_for]), waited_for
            assert set(service["networks"]) <= set(compose["networks"]), name
        build = services["node1"]["build"]
        assert (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve() == IMAGE
        for mount in services["balancer"]["volumes"]:
            source = mount.split(":")[0]
            assert source.startswith("/") or (COMPOSE.parent / source).exists()

    def test_its_tables_are_made_before_its_nodes_start(self) -> None:
        services = composed()["services"]
        migrate = services["migrate"]
        command, *arguments = migrate["command"]
        assert command in COMMANDS
        assert migrate_command.make_context(command, arguments).params["copies"] == 1
        for name in ("node1", "node2"):
            assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
            same = {"image", "build"}
            assert {key: services[name][key] for key in same} == {key: migrate[key] for key in same}
        of_node = load({}, {k: v for k, v in services["node1"]["environment"].items() if k.startswith("TIDEGATE_")})
        of_migrate = load({}, migrate["environment"])
        assert of_migrate.cassandra_hosts == of_node.cassandra_hosts
        assert of_migrate.cassandra_keyspace == of_node.cassandra_keyspace


class TestImage:
    def test_it_is_made_of_what_is_there_and_nothing_that_is_ignored(self) -> None:
        ignored = IMAGE.with_name("Containerfile.dockerignore").read_text().split()
        for source in self.sources():
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source

    def test_it_holds_every_package_of_the_distribution(self, tmp_path: Path) -> None:
        """What it copies is enough to build tidegate, with everything that belongs to it."""
        for source in self.sources():
            target = tmp_path / "context" / source
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, target)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
        pip += ["--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), str(tmp_path / "context")]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        (wheel,) = tmp_path.glob("*.whl")
        names = set(zipfile.ZipFile(wheel).namelist())
        folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
        for package in (pattern.rstrip("*") for pattern in folders["include"]):
            assert f"{package}/__init__.py" in names
        for schema in (*ROOT.glob("schema/*/*.sql"), *ROOT.glob("schema/*/*.cql")):
            assert str(schema.relative_to(ROOT)) in names

    def test_it_runs_as_nobody_special_and_is_asked_how_it_is(self) -> None:
        lines = IMAGE.read_text().splitlines()
        assert lines.index("USER 10001") > max(n for n, line in enumerate(lines) if line.startswith(("RUN", "COPY")))
        (script,) = re.findall(r'CMD \["python", "-c", "(.*)"\]', IMAGE.read_text())
        compile(script, "HEALTHCHECK", "exec")
        assert f":{Settings().port}/health/live" in script
        assert f"EXPOSE {Settings().port}" in lines
        load({}, {name: value for name, value in variables_of(IMAGE).items() if name.startswith("TIDEGATE_")})

    def test_it_is_repeatable_and_keeps_nothing_it_does_not_need(self) -> None:
        text = re.sub(r"\\\n\s*", "", uncommented(IMAGE))
        instructions = [line.split(" ", 1) for line in text.splitlines() if line]
        assert {name for name, _ in instructions} <= {
            "FROM", "WORKDIR", "RUN", "COPY", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL",
            "ENTRYPOINT", "CMD",
        }  # fmt: skip
        for image in (rest.split()[0] for name, rest in instructions if name == "FROM"):
            assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", image), "a version, never latest"
        for run in (rest for name, rest in instructions if name == "RUN" and "pip install" in rest):
            assert "--no-cache-dir" in run
            assert "--require-hashes" in run or "--no-deps --no-build-isolation" in run
        assert all(rest.startswith("/") for name, rest in instructions if name == "WORKDIR")
        assert dict(instructions)["ENTRYPOINT"] == '["tidegate"]', "as a list: signals reach it without a shell"
        assert dict(instructions)["CMD"] == '["serve"]'

    def test_it_has_the_drivers_of_a_cluster_and_what_builds_it(self) -> None:
        assert "requirements/cluster.txt" in self.sources()
        pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements" / "cluster.txt").read_text(), re.MULTILINE))
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
        wanted += project["project"]["optional-dependencies"]["cluster"]
        assert {re.match(r"[\w-]+", each)[0] for each in wanted} <= pinned

    def sources(self) -> list[str]:
        copies = re.findall(r"^COPY (?!--from)(.*) \S+$", IMAGE.read_text(), re.MULTILINE)
        found = [source for copy in copies for source in copy.split()]
        assert len(found) >= 8
        return found


def test_requirements_name_packages_and_hashes_and_no_place_to_get_them_from() -> None:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    assert [file.stem for file in files] == ["cluster", "dev", "runtime"]
    for file in files:
        for line in filter(None, file.read_text().splitlines()):
            assert re.fullmatch(r"#.*|[\w.-]+==[\w.!+-]+( ;.*)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), (
                file.name,
                line,
            )


@pytest.mark.parametrize("name", ["cluster.txt", "dev.txt"])
def test_what_packages_need_under_an_older_python_is_pinned_whatever_python_made_the_lock(name: str) -> None:
    """Debian 12 has Python 3.11.2, for which redis asks for one package more."""
    assert re.search(r"^async-timeout==", (ROOT / "requirements" / name).read_text(), re.MULTILINE)
