import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli.config import command
from gateway.config import Settings
from gateway.config_load import SETTINGS, load

SECRET = "correct horse battery staple 0123456789"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner(env={**environment}).invoke(command, arguments)


def test_every_key_with_unit_meaning_and_source() -> None:
    result = run("--port", "9", TIDEGATE_IDLE_TIMEOUT_S="120")
    assert result.exit_code == 0
    for setting in SETTINGS.values():
        assert f"\n# {setting.meaning}; allowed: {setting.allowed}\n" in result.output
        assert f"\n{setting.name} = " in result.output
    lines = {line.split(" = ")[0]: line for line in result.output.splitlines() if " = " in line and line[0] != "#"}
    assert lines["port"].endswith("# from --port")
    assert lines["idle_timeout_s"].endswith("# from TIDEGATE_IDLE_TIMEOUT_S")
    assert lines["host"].endswith("# from default")


def test_the_output_is_a_configuration_file(tmp_path: Path) -> None:
    odd = 'Zoë "x" \\ \t 🙂 \x7f #'
    result = run("--auth-issuer", odd, "--allowed-origins", "https://a", "--allowed-origins", "https://b")
    assert tomllib.loads(result.output)["auth_issuer"] == odd
    file = tmp_path / "again.toml"
    file.write_text(result.output)
    assert load({}, {}, file) == Settings(auth_issuer=odd, allowed_origins=["https://a", "https://b"])


def test_a_list_is_given_with_commas_or_by_repeating() -> None:
    given = run("--json", "--cassandra-hosts", "10.0.0.1, 10.0.0.2", "--cassandra-hosts", "10.0.0.3")
    assert json.loads(given.output)["cassandra_hosts"]["value"] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_secrets_are_masked(tmp_path: Path) -> None:
    result = run(TIDEGATE_AUTH_SECRET=SECRET)
    assert SECRET not in result.output
    assert "\n# auth_secret is set, and not shown " in result.output
    assert " # from TIDEGATE_AUTH_SECRET\n" in result.output
    (tmp_path / "again.toml").write_text(result.output)
    assert load({}, {}, tmp_path / "again.toml") == Settings()
    as_json = run("--json", TIDEGATE_AUTH_SECRET=SECRET)
    assert SECRET not in as_json.output
    assert json.loads(as_json.output)["auth_secret"]["value"] == "********"


def test_json() -> None:
    found = json.loads(run("--json", "--data-dir", "d").output)
    assert list(found) == list(Settings.__struct_fields__)
    assert found["data_dir"] == {
        "value": "d",
        "unit": "",
        "meaning": SETTINGS["data_dir"].meaning,
        "allowed": "the path of a directory",
        "source": "--data-dir",
        "default": "data",
    }
    assert found["idle_timeout_s"]["value"] == 90.0
    assert found["idle_timeout_s"]["unit"] == "s"
    assert found["auth_secret"]["value"] == ""


def test_a_named_file(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("port = 5")
    assert "port = 5 " in run("--config", "x.toml").output
    assert "port = 5 " in run(TIDEGATE_CONFIG="x.toml").output
    missing = run("--config", "y.toml")
    assert missing.exit_code == 2
    assert "y.toml cannot be read" in missing.output


def test_each_setting_is_an_option() -> None:
    out = run("--help").output
    for setting in SETTINGS.values():
        assert f"  {setting.option} " in out
