"""Keys and tokens for the tests of auth, made once."""

import base64
import hashlib
import hmac
import json
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

NOW_S = 1_800_000_000
SECRET = "0123456789abcdef0123456789abcdef"


@cache
def private_key(kind: str, number: int = 0) -> Any:
    """A private key of a kind: EdDSA, ES256, RS256, and some that fit none of these."""
    match kind:
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case "Ed448":
            return ed448.Ed448PrivateKey.generate()
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "P-384":
            return ec.generate_private_key(ec.SECP384R1())
        case "RS256":
            return rsa.generate_private_key(65537, 2048)
        case "RSA-1024":
            return rsa.generate_private_key(65537, 1024)
    raise AssertionError(kind)


def public_pem(kind: str, number: int = 0) -> bytes:
    return private_key(kind, number).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(kind: str) -> bytes:
    return private_key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_jwk(kind: str, number: int = 0, **more: Any) -> dict[str, Any]:
    algorithm = jwt.get_algorithm_by_name({"P-384": "ES384", "RSA-1024": "RS256", "Ed448": "EdDSA"}.get(kind, kind))
    return {**algorithm.to_jwk(private_key(kind, number).public_key(), as_dict=True), **more}


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    """Claims that a verifier with default settings accepts at NOW_S; a change to None leaves one out."""
    default = {"sub": "alice", "exp": NOW_S + 3600, "aud": "tidegate"}
    return {name: value for name, value in (default | changes).items() if value is not None}


def hs256(payload: dict[str, Any] | None = None, secret: str = SECRET, **header: Any) -> str:
    return jwt.encode(claims() if payload is None else payload, secret, algorithm="HS256", headers=header or None)


def signed_by(kind: str, number: int = 0, payload: dict[str, Any] | None = None, **header: Any) -> str:
    return jwt.encode(
        claims() if payload is None else payload, private_key(kind, number), algorithm=kind, headers=header or None
    )


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def handmade(header: bytes, payload: bytes, secret: str = SECRET) -> str:
    """A token with exactly this header and payload and a right HS256 signature, which no library would make."""
    signed = f"{b64(header)}.{b64(payload)}"
    return f"{signed}.{b64(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))}"
