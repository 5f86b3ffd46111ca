import os
import stat
import threading
from pathlib import Path

import jwt
import pytest

from gateway.auth import SecretUnusable, Verifier, development_secret, development_token, existing_secret, sign_token
from gateway.config import Settings


def test_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    secret = development_secret(data_dir)
    assert len(secret) >= 43
    assert development_secret(data_dir) == secret == existing_secret(data_dir)
    assert (data_dir / "secret").read_text() == secret
    assert stat.S_IMODE((data_dir / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert os.listdir(data_dir) == ["secret"]
    assert development_secret(tmp_path / "other") != secret


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    secrets: list[str] = []
    together = threading.Barrier(8)

    def start() -> None:
        together.wait()
        secrets.append(development_secret(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(secrets) == 8
    assert len(set(secrets)) == 1
    assert os.listdir(tmp_path) == ["secret"]


def test_a_verifier_takes_its_tokens(tmp_path: Path) -> None:
    verifier = Verifier.from_settings(Settings(data_dir=tmp_path))
    assert verifier.verify(development_token(tmp_path, "alice")).user == "alice"
    strict = Verifier.from_settings(Settings(data_dir=tmp_path, auth_audience="a", auth_issuer="i"))
    assert strict.verify(development_token(tmp_path, "bob", audience="a", issuer="i")).user == "bob"


def test_claims_of_a_token() -> None:
    secret = "s" * 32
    payload = jwt.decode(
        sign_token(secret, "alice", ttl_s=60, audience="x"), secret, algorithms=["HS256"], audience="x"
    )
    assert payload["exp"] == payload["iat"] + 60
    assert payload.keys() == {"sub", "iat", "exp", "aud"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o620])
def test_readable_by_others(mode: int, tmp_path: Path) -> None:
    secret = development_secret(tmp_path)
    (tmp_path / "secret").chmod(mode)
    with pytest.raises(SecretUnusable, match=f"has mode {mode:04o}, .*chmod 600") as caught:
        Verifier.from_settings(Settings(data_dir=tmp_path))
    assert secret not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64])
def test_damaged(content: bytes, tmp_path: Path) -> None:
    development_secret(tmp_path)
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(SecretUnusable, match="is damaged; delete it and restart"):
        development_secret(tmp_path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(SecretUnusable, match="a node makes it on its first start"):
        development_token(tmp_path, "alice")
    assert not os.listdir(tmp_path)


def test_a_data_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path / "file", "it is a file"), (tmp_path / "file" / "below", "Not a directory")):
        with pytest.raises(SecretUnusable) as caught:
            development_secret(path)
        assert f"data directory {path} cannot be used: {reason}" in str(caught.value)
        assert "choose another one with --data-dir" in str(caught.value)
