"""The development secret, and tokens made with it: for trying tidegate out before there is an identity provider."""

import os
import secrets
import stat
import time
from pathlib import Path
from typing import Final

import jwt

from gateway.auth.claims import EXPIRY_S_MAX
from gateway.auth.keys import AuthMisconfigured, hmac_secret
from store.embedded_directory import unusable

SECRET_FILE: Final = "secret"  # noqa: S105 - a file name
"""Name of the file in the data directory. Its text, as it stands, is the HS256 secret."""

DEVELOPMENT_TOKEN_TTL_S: Final = 86_400
"""Seconds that a development token lives unless said otherwise: a day of trying things out."""

_FILE_BYTES_MAX: Final = 4096
"""Bytes read of the file, of which a secret that a node made has 64."""


class SecretUnusable(Exception):
    """The development secret is missing, readable by others or damaged; the message says what to do."""


def development_secret(data_dir: Path) -> str:
    """The development secret of ``data_dir``, made (mode 0600) if there is none. Several processes may ask at once.

    Raises:
        SecretUnusable: it cannot be read or written, or others may read it.
    """
    path = data_dir / SECRET_FILE
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
    except OSError as error:
        raise SecretUnusable(str(unusable(data_dir.absolute(), error))) from None
    return existing_secret(data_dir)


def existing_secret(data_dir: Path) -> str:
    """The development secret of ``data_dir``, which a node made before. Raises SecretUnusable."""
    path = data_dir / SECRET_FILE
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(_FILE_BYTES_MAX)
    except FileNotFoundError:
        raise SecretUnusable(
            f"there is no secret {path} yet: a node makes it on its first start (tidegate serve); "
            "or name the data directory of that node with --data-dir"
        ) from None
    except OSError as error:
        raise SecretUnusable(
            f"the secret {path} cannot be read: {error.strerror}; it must belong to the user that runs the node "
            f"(chown that user {path}), or choose another --data-dir"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise SecretUnusable(
            f"the secret {path} has mode {stat.S_IMODE(mode):04o}, so that others may read it; run: chmod 600 {path} "
            "(and delete it, to have a new one made, if somebody may have read it)"
        )
    try:
        secret = raw.decode("ascii").strip()
        hmac_secret(secret)
    except (UnicodeDecodeError, AuthMisconfigured):
        raise SecretUnusable(
            f"the secret {path} is damaged; delete it and restart the node to have a new one made "
            "(tokens made so far are void then)"
        ) from None
    return secret


def _create(path: Path) -> None:
    """Write a new secret beside ``path`` and link it there, so that nobody ever sees half of one, nor two."""
    draft = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_urlsafe(48))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return  # another process was first: its secret counts
    finally:
        draft.unlink()


def sign_token(secret: str, user: str, *, ttl_s: float, audience: str, issuer: str = "") -> str:
    """An HS256 token for ``user`` that runs out ``ttl_s`` seconds from now. Empty audience or issuer: no such claim."""
    now_s = int(time.time())
    claims: dict[str, object] = {"sub": user, "iat": now_s, "exp": int(min(now_s + ttl_s, EXPIRY_S_MAX))}
    if audience:
        claims["aud"] = audience
    if issuer:
        claims["iss"] = issuer
    return jwt.encode(claims, secret, algorithm="HS256")


def development_token(
    data_dir: Path, user: str, *, ttl_s: float = DEVELOPMENT_TOKEN_TTL_S, audience: str = "tidegate", issuer: str = ""
) -> str:
    """A token for ``user``, signed with the development secret that a node made in ``data_dir``.

    Raises:
        SecretUnusable: there is no usable secret in ``data_dir``.
    """
    return sign_token(existing_secret(data_dir), user, ttl_s=ttl_s, audience=audience, issuer=issuer)
