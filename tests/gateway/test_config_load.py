from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import SECRETS, Settings
from gateway.config_load import OTHER_VARIABLES, SETTINGS, ConfigError, Setting, load, load_effective


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def complaint(options: Mapping[str, object], environ: Mapping[str, str], path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(options, environ, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_given() -> None:
    found = load_effective({}, {"PATH": "/bin", "TIDEGATE": "x"})
    assert found.settings == Settings()
    assert set(found.sources.values()) == {"default"}
    assert list(found.sources) == list(Settings.__struct_fields__)


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('port = 1\nhost = "file"\nnode_name = "file"\nsyncs_max = 7\n')
    found = load_effective(
        {"port": "3", "node_name": None}, {"TIDEGATE_PORT": "2", "TIDEGATE_HOST": "environment"}, file
    )
    settings = found.settings
    assert (settings.port, settings.host, settings.node_name, settings.syncs_max) == (3, "environment", "file", 7)
    assert found.sources["port"] == "--port"
    assert found.sources["host"] == "TIDEGATE_HOST"
    assert found.sources["node_name"] == str(file)
    assert found.sources["data_dir"] == "default"


def test_which_file(tmp_path: Path) -> None:
    assert load({}, {}).port == Settings().port
    (tmp_path / "tidegate.toml").write_text("port = 1")
    (tmp_path / "named.toml").write_text("port = 2")
    (tmp_path / "option.toml").write_text("port = 3")
    assert load({}, {}).port == 1
    assert load({}, {"TIDEGATE_CONFIG": "named.toml"}).port == 2
    assert load({}, {"TIDEGATE_CONFIG": "named.toml"}, Path("option.toml")).port == 3
    assert load({}, {"TIDEGATE_CONFIG": ""}).port == 1


def test_every_type_from_every_source(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('port = 5\nidle_timeout_s = 91\ndata_dir = "d"\nallowed_origins = ["https://a", "https://b"]\n')
    from_file = load({}, {}, file)
    from_environment = load(
        {},
        {
            "TIDEGATE_PORT": "5",
            "TIDEGATE_IDLE_TIMEOUT_S": "91",
            "TIDEGATE_DATA_DIR": "d",
            "TIDEGATE_ALLOWED_ORIGINS": " https://a, https://b,",
        },
    )
    from_text = load(
        {"port": "5", "idle_timeout_s": "9.1e1", "data_dir": "d", "allowed_origins": ("https://a", "https://b")}, {}
    )
    from_values = load(
        {"port": 5, "idle_timeout_s": 91.0, "data_dir": Path("d"), "allowed_origins": ["https://a", "https://b"]}, {}
    )
    assert from_file == from_environment == from_text == from_values
    assert type(from_file.idle_timeout_s) is float
    assert from_file.data_dir == Path("d")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"port": "x"}, "port is 'x' (from --port); allowed: a whole number from 0 to 65535"),
        ({"port": "65536"}, "port is '65536' (from --port); allowed: a whole number from 0 to 65535"),
        ({"port": "-1"}, "port is '-1' (from --port); allowed: a whole number from 0 to 65535"),
        ({"port": "80.5"}, "port is '80.5' (from --port); allowed: a whole number from 0 to 65535"),
        ({"port": True}, "port is True (from --port); allowed: a whole number from 0 to 65535"),
        ({"port": ""}, "port is '' (from --port); allowed: a whole number from 0 to 65535"),
        (
            {"idle_timeout_s": "nan"},
            "idle_timeout_s is 'nan' (from --idle-timeout-s); allowed: a number of at least 1 (s)",
        ),
        (
            {"idle_timeout_s": "inf"},
            "idle_timeout_s is 'inf' (from --idle-timeout-s); allowed: a number of at least 1 (s)",
        ),
        ({"idle_timeout_s": 10**400}, "allowed: a number of at least 1 (s)"),
        ({"host": 5}, "host is 5 (from --host); allowed: a text"),
        ({"data_dir": ""}, "data_dir is '' (from --data-dir); allowed: the path of a directory"),
        ({"allowed_origins": [1]}, "allowed_origins is [1] (from --allowed-origins); allowed: a list of texts"),
        ({"log_level": "warn"}, "log_level is 'warn' (from --log-level); allowed: one of debug, info, warning, error"),
        ({"auth_algorithm": "none"}, "allowed: one of HS256, EdDSA, ES256, RS256"),
        ({"node_name": "a\nb"}, "node_name (from --node-name) has characters that are not printable"),
    ],
)
def test_values_that_are_refused(options: dict[str, object], expected: str) -> None:
    assert expected in complaint(options, {})


def test_a_file_is_typed_strictly(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('port = "80"')
    assert complaint({}, {}, file) == f"port is '80' (from {file}); allowed: a whole number from 0 to 65535"
    file.write_text("port = 80.0")
    assert "port is 80.0" in complaint({}, {}, file)
    file.write_text('allowed_origins = "https://a"')
    assert "allowed: a list of texts" in complaint({}, {}, file)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("auth_secret = 123456789")
    assert "123456789" not in complaint({}, {}, file)
    assert "hunter2" not in repr(load({"auth_secret": "hunter2"}, {}))
    assert "auth_secret=''" in repr(Settings())
    assert {setting.name for setting in SETTINGS.values() if setting.secret} == SECRETS


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("prot = 1", "unknown key 'prot' in a.toml; did you mean port?"),
        ("idle_timeout = 1", "unknown key 'idle_timeout' in a.toml; did you mean idle_timeout_s?"),
        ("zzz = 1", "unknown key 'zzz' in a.toml; tidegate config prints all there are"),
        ("[tidegate]\nport = 1", "unknown key 'tidegate' in a.toml"),
        ("port = ", "the configuration file a.toml is not TOML: Invalid value (at "),
        ("port = 1\nport = 2", "the configuration file a.toml is not TOML: Cannot overwrite a value"),
    ],
)
def test_files_that_are_refused(content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(content)
    assert expected in complaint({}, {}, Path("a.toml"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert (
        complaint({}, {}, Path("b.toml")) == "the configuration file b.toml cannot be read: No such file or directory"
    )
    assert "No such file" in complaint({}, {"TIDEGATE_CONFIG": "b.toml"})
    assert "Is a directory" in complaint({}, {}, tmp_path)
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    assert "is not TOML" in complaint({}, {}, Path("c.toml"))


def test_unknown_variables() -> None:
    assert (
        complaint({}, {"TIDEGATE_PROT": "1"})
        == "unknown environment variable TIDEGATE_PROT; did you mean TIDEGATE_PORT?"
    )
    assert complaint({"prot": 1}, {}) == "unknown option 'prot'; did you mean port?"
    assert load({}, dict.fromkeys(OTHER_VARIABLES - {"TIDEGATE_CONFIG"}, "x")) == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TIDEGATE_PORT", "tcp://10.0.0.1:8480"),
        ("TIDEGATE_SERVICE_HOST", "10.0.0.1"),
        ("TIDEGATE_PORT_8480_TCP", "tcp://x:1"),
    ],
)
def test_kubernetes_service_links_are_named_as_such(variable: str, value: str) -> None:
    assert "set enableServiceLinks: false" in complaint({}, {variable: value})


def test_relations_name_both_sources() -> None:
    assert complaint({"idle_timeout_s": "5"}, {"TIDEGATE_HEARTBEAT_INTERVAL_S": "6"}) == (
        "idle_timeout_s is 5 (from --idle-timeout-s), but must be more than heartbeat_interval_s, which is 6 "
        "(from TIDEGATE_HEARTBEAT_INTERVAL_S): a client that sends its heartbeats in time must not be cut"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"history_file": "h.jsonl"}, "history_file is given (from --history-file), but a node that is alone with its"),
        ({"processes": "2"}, "processes is 2 (from --processes), but the data directory of the embedded store can be"),
        (
            {"roles": "edge"},
            "(store is embedded, from default); allowed: both, or store = cassandra, which nodes share",
        ),
        ({"drain_grace_s": "5", "drain_lead_s": "5"}, "drain_grace_s is 5 (from --drain-grace-s), but must be more"),
        (
            {"processes": "3", "store": "cassandra", "port": "8482", "process_port": "8480"},
            "would take the ports 8480 to 8482; allowed: ports up to 65535 that do not include port, which is 8482",
        ),
        ({"processes": "3", "store": "cassandra", "process_port": "65534"}, "the ports 65534 to 65536"),
    ],
)
def test_what_needs_a_shared_store_and_ports_of_its_own(options: dict[str, object], expected: str) -> None:
    assert expected in complaint(options, {})


def test_several_processes_and_one_role_on_a_shared_store() -> None:
    settings = load({"store": "cassandra", "processes": "3", "roles": "edge", "process_port": "8481"}, {})
    assert (settings.processes, settings.roles) == (3, "edge")
    assert load({"drain_grace_s": 0.0}, {}).drain_grace_s == 0


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_each_setting_is_described_and_its_default_is_allowed(setting: Setting) -> None:
    assert setting.meaning
    assert setting.kind in {int, float, str, Path, list}
    if setting.name.endswith(("_s", "_s_max")):
        assert setting.unit in {"s", "1/s"}
    if "_bytes_" in setting.name:
        assert setting.unit == "bytes"
    assert bool(setting.unit) == (setting.kind in {int, float} and "port" not in setting.name)
    assert load({setting.name: setting.default}, {}) == Settings()


@given(st.dictionaries(st.sampled_from([s.variable for s in SETTINGS.values()]), st.text(max_size=8), max_size=5))
def test_any_text_gives_settings_or_the_documented_error(environ: dict[str, str]) -> None:
    try:
        settings = load({}, environ)
    except ConfigError:
        return
    assert load({name: getattr(settings, name) for name in Settings.__struct_fields__}, {}) == settings
