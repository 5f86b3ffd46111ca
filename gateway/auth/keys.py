"""Keys that tokens are verified with: checked when they are loaded, so that verifying cannot go wrong later."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

SECRET_BYTES_MIN: Final = 32
"""Bytes of an HS256 secret: as many as the hash has (RFC 7518 section 3.2)."""

JWKS_KEYS_MAX: Final = 64
"""Keys of one JWKS: a provider publishes two or three; more than this is not a JWKS of ours."""

PUBLIC_KEY_ALGORITHMS: Final = ("EdDSA", "ES256", "RS256")
_KEY_TYPES: Final = {"EdDSA": "OKP", "ES256": "EC", "RS256": "RSA"}

PublicKey = Any
"""A public key of the cryptography package that fits the algorithm it was loaded for."""


class AuthMisconfigured(Exception):
    """The settings or a key cannot be used to verify tokens; the message says why and what to do."""


def hmac_secret(secret: str) -> bytes:
    """The bytes of an HS256 secret.

    Raises:
        AuthMisconfigured: too short, or in truth a public key, a certificate or a JWK. (Whoever knows a public key
            could sign with it.)
    """
    raw = secret.encode()
    if len(raw) < SECRET_BYTES_MIN:
        raise AuthMisconfigured(
            f"auth_secret has {len(raw)} bytes; HS256 needs at least {SECRET_BYTES_MIN} random ones "
            "(make one with: openssl rand -base64 48)"
        )
    try:
        return bytes(jwt.get_algorithm_by_name("HS256").prepare_key(raw))
    except jwt.InvalidKeyError:
        raise AuthMisconfigured(
            "auth_secret is a key or certificate, not a secret; public keys go into auth_key_file, "
            "with auth_algorithm EdDSA, ES256 or RS256"
        ) from None


def public_key_from_file(path: Path, algorithm: str) -> PublicKey:
    """Read a PEM file with a public key for ``algorithm``. Raises AuthMisconfigured."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise AuthMisconfigured(f"auth_key_file {path} cannot be read: {error.strerror}") from None
    if b"PRIVATE KEY" in pem:
        raise AuthMisconfigured(
            f"auth_key_file {path} holds a private key, which has no place on a node; "
            "give the public one (openssl pkey -in FILE -pubout)"
        )
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise AuthMisconfigured(
            f"auth_key_file {path} holds no public key in PEM form (-----BEGIN PUBLIC KEY-----)"
        ) from None
    try:
        return fitting(key, algorithm)
    except AuthMisconfigured as error:
        raise AuthMisconfigured(f"auth_key_file {path}: {error}") from None


def fitting(key: PublicKey, algorithm: str) -> PublicKey:
    """The key itself, if it is of the type, curve and size that ``algorithm`` needs. Raises AuthMisconfigured."""
    implementation = jwt.get_algorithm_by_name(algorithm)
    try:
        prepared = implementation.prepare_key(key)
    except (jwt.InvalidKeyError, TypeError, ValueError):
        raise AuthMisconfigured(f"the key's type or curve does not fit {algorithm}") from None
    if algorithm == "EdDSA" and not isinstance(prepared, Ed25519PublicKey):
        raise AuthMisconfigured("EdDSA needs an Ed25519 key")
    too_short = implementation.check_key_length(prepared)
    if too_short:
        raise AuthMisconfigured(too_short)
    return prepared


def parse_jwks(document: bytes, algorithm: str) -> tuple[dict[str, PublicKey], list[str]]:
    """The keys of a JWKS (RFC 7517) that fit ``algorithm``, by ``kid`` (empty for a key without one).

    Keys for other uses, algorithms or types are passed over; the second result says why for each, for the log.

    Raises:
        AuthMisconfigured: not a JWKS, or no key in it fits.
    """
    try:
        parsed = msgspec.json.decode(document)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise AuthMisconfigured("the JWKS is not JSON") from None
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(listed, list):
        raise AuthMisconfigured('the JWKS has no list "keys"')
    if len(listed) > JWKS_KEYS_MAX:
        raise AuthMisconfigured(f"the JWKS has {len(listed)} keys; allowed are {JWKS_KEYS_MAX}")
    keys: dict[str, PublicKey] = {}
    passed_over: list[str] = []
    for position, jwk in enumerate(listed):
        try:
            kid, key = _key_of(jwk, algorithm)
        except AuthMisconfigured as error:
            passed_over.append(f"key {position}: {error}")
        else:
            keys[kid] = key
    if not keys:
        raise AuthMisconfigured(f"the JWKS has no key for {algorithm} ({'; '.join(passed_over) or 'it is empty'})")
    return keys, passed_over


def _key_of(jwk: object, algorithm: str) -> tuple[str, PublicKey]:
    if not isinstance(jwk, Mapping):
        raise AuthMisconfigured("not an object")
    if jwk.get("kty") != _KEY_TYPES[algorithm]:
        raise AuthMisconfigured(f"its kty is not {_KEY_TYPES[algorithm]}")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list):
        raise AuthMisconfigured("its key_ops is not a list")
    if jwk.get("use", "sig") != "sig" or "verify" not in operations:
        raise AuthMisconfigured("not for verifying signatures")
    if jwk.get("alg", algorithm) != algorithm:
        raise AuthMisconfigured(f"its alg is not {algorithm}")
    if "d" in jwk:
        raise AuthMisconfigured("it is a private key, which must not be published")
    kid = jwk.get("kid", "")
    if not isinstance(kid, str):
        raise AuthMisconfigured("its kid is not a string")
    try:
        key = jwt.PyJWK.from_dict(dict(jwk), algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
        raise AuthMisconfigured(f"malformed for kty {_KEY_TYPES[algorithm]}") from None
    return kid, fitting(key, algorithm)
