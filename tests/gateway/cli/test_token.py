from pathlib import Path

import jwt
import pytest
from click.testing import CliRunner, Result

from gateway.auth import Verifier, development_secret
from gateway.cli.token import command
from gateway.config import Settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner(env={**environment}).invoke(command, arguments)


def test_a_token_that_the_node_takes() -> None:
    verifier = Verifier.from_settings(Settings())  # makes the secret, as the first start does
    result = run("alice")
    assert result.exit_code == 0
    assert verifier.verify(result.output.strip()).user == "alice"
    assert result.output.count("\n") == 1


def test_another_data_directory(tmp_path: Path) -> None:
    secret = development_secret(tmp_path / "elsewhere")
    for result in (run("bob", "--data-dir", "elsewhere"), run("bob", TIDEGATE_DATA_DIR="elsewhere")):
        assert jwt.decode(result.output.strip(), secret, algorithms=["HS256"], audience="tidegate")["sub"] == "bob"


def test_a_configured_secret_audience_and_issuer() -> None:
    settings = Settings(auth_secret="x" * 32, auth_audience="a", auth_issuer="i")
    result = run("bob", TIDEGATE_AUTH_SECRET="x" * 32, TIDEGATE_AUTH_AUDIENCE="a", TIDEGATE_AUTH_ISSUER="i")
    assert Verifier.from_settings(settings).verify(result.output.strip()).user == "bob"


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604_800), (None, 86_400)]
)
def test_ttl(ttl: str | None, seconds: int) -> None:
    secret = "x" * 32
    result = run("bob", *(("--ttl", ttl) if ttl else ()), "--auth-secret", secret)
    payload = jwt.decode(result.output.strip(), secret, algorithms=["HS256"], audience="tidegate")
    assert payload["exp"] - payload["iat"] == seconds


@pytest.mark.parametrize("ttl", ["", "0", "-1", "1w", "h", "1.5h", "1h30m"])
def test_bad_ttl(ttl: str) -> None:
    result = run("bob", "--ttl", ttl, "--auth-secret", "x" * 32)
    assert result.exit_code == 2
    assert "is not a duration; allowed: a whole number above 0 and s, m, h or d" in result.output


@pytest.mark.parametrize("user", ["", "x" * 129, "a\nb"])
def test_bad_user(user: str) -> None:
    result = run("--auth-secret", "x" * 32, "--", user)
    assert result.exit_code == 2
    assert f"the user id has {len(user)} characters; allowed are 1 to 128, all printable" in result.output


def test_no_node_yet(tmp_path: Path) -> None:
    result = run("alice")
    assert result.exit_code == 1
    assert "there is no secret data/secret yet: a node makes it on its first start (tidegate serve)" in result.output
    assert not list(tmp_path.iterdir())


def test_bad_secrets() -> None:
    assert "has 5 bytes; HS256 needs at least 32" in run("alice", TIDEGATE_AUTH_SECRET="short").output
    refused = run("alice", TIDEGATE_AUTH_ALGORITHM="RS256")
    assert refused.exit_code == 2
    assert "which only your token issuer can make" in refused.output
