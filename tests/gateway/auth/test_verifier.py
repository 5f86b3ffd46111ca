import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth import AuthMisconfigured, Identity, TokenRefused, Verifier
from gateway.config import Settings
from protocol import limits
from tests.gateway.auth.keys import (
    NOW_S,
    SECRET,
    b64,
    claims,
    handmade,
    hs256,
    private_pem,
    public_pem,
    signed_by,
)

LEEWAY_S = limits.TOKEN_LEEWAY_S


def verifier(now_s: Callable[[], float] = lambda: float(NOW_S), **changes: Any) -> Verifier:
    return Verifier.from_settings(Settings(**({"auth_secret": SECRET} | changes)), now_s=now_s)


def refusal(token: str, subject: Verifier | None = None) -> str:
    """Why a token is refused: at first sight, and again when its header is known from a good token."""
    messages = []
    for warm in (False, True):
        one = subject or verifier()
        if warm and subject is None:
            one.verify(hs256())
        with pytest.raises(TokenRefused) as caught:
            one.verify(token)
        assert len(token) < 10 or token not in str(caught.value)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    return messages[0]


def test_a_good_token_gives_the_user_and_the_expiry() -> None:
    subject = verifier()
    for _ in range(3):
        assert subject.verify(hs256()) == Identity("alice", NOW_S + 3600)


@pytest.mark.parametrize("kind", ["EdDSA", "ES256", "RS256"])
def test_each_public_key_family(kind: str, tmp_path: Path) -> None:
    key_file = tmp_path / "key.pem"
    key_file.write_bytes(public_pem(kind))
    subject = verifier(auth_secret="", auth_algorithm=kind, auth_key_file=str(key_file))
    assert subject.verify(signed_by(kind)).user == "alice"
    assert subject.verify(signed_by(kind, kid="whatever")).user == "alice"
    assert "signature does not verify" in refusal(signed_by(kind, 1), subject)
    assert "signature does not verify" in refusal(signed_by(kind)[:-8] + "AAAAAAAA", subject)
    for other in {"EdDSA", "ES256", "RS256"} - {kind}:
        assert f"accepts {kind} only" in refusal(signed_by(other), subject)
    # the classic: the public key, which everybody knows, used as an HMAC secret
    confused = handmade(b'{"alg":"HS256","typ":"JWT"}', json.dumps(claims()).encode(), public_pem(kind).decode())
    assert f"accepts {kind} only" in refusal(confused, subject)


@pytest.mark.parametrize("alg", ["none", "None", "nOnE", "", "HS512", "RS256"])
def test_no_other_algorithm(alg: str) -> None:
    header = json.dumps({"alg": alg, "typ": "JWT"}).encode()
    payload = json.dumps(claims()).encode()
    assert "accepts HS256 only" in refusal(handmade(header, payload))
    assert "accepts HS256 only" in refusal(f"{b64(header)}.{b64(payload)}.")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"exp": NOW_S - LEEWAY_S}, "expired 30 s ago; get a new one"),
        ({"exp": -(10**400)}, "expired 9007199254740991 s ago"),
        ({"exp": None}, "missing required field `exp`"),
        ({"exp": "soon"}, "got `str` - at `$.exp`"),
        ({"sub": None}, "missing required field `sub`"),
        ({"sub": ""}, "sub has 0 characters; a user id has 1 to 128"),
        ({"sub": "x" * 129}, "sub has 129 characters; a user id has 1 to 128"),
        ({"sub": "a\nb"}, "printable"),
        ({"sub": "a\x7fb"}, "printable"),
        ({"sub": "a\u202eb"}, "printable"),
        ({"nbf": NOW_S + LEEWAY_S + 1}, "not valid yet: its nbf is 31 s ahead"),
        ({"nbf": 10**400}, "its nbf is 9007197454740991 s ahead"),
        ({"iat": 10**400}, "its iat is 9007197454740991 s ahead"),
        ({"iat": NOW_S + LEEWAY_S + 1}, "issued in the future: its iat is 31 s ahead"),
        ({"aud": None}, "no aud claim; it must name 'tidegate'"),
        ({"aud": []}, "no aud claim; it must name 'tidegate'"),
        ({"aud": "other"}, "for another audience; its aud must name 'tidegate'"),
        ({"aud": "tidegate2"}, "for another audience"),
        ({"aud": ["a", "b"]}, "for another audience"),
        ({"aud": {"tidegate": 1}}, "at `$.aud`"),
    ],
)
def test_claims_that_are_refused(changes: dict[str, Any], complaint: str) -> None:
    token = handmade(b'{"alg":"HS256","typ":"JWT"}', json.dumps(claims(**changes)).encode())
    assert complaint in refusal(token)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": NOW_S - LEEWAY_S + 1},
        {"exp": NOW_S + 0.5},
        {"nbf": NOW_S + LEEWAY_S},
        {"iat": NOW_S + LEEWAY_S},
        {"aud": ["a", "tidegate"]},
        {"sub": "x" * 128},
        {"sub": "Zoë Ðurić 漢字 🙂"},
        {"unknown": {"deep": [1]}, "jti": "7"},
    ],
)
def test_claims_at_the_edge_of_what_is_allowed(changes: dict[str, Any]) -> None:
    assert verifier().verify(hs256(claims(**changes))).user == changes.get("sub", "alice")


def test_expiry_is_bounded_by_what_clients_can_represent() -> None:
    assert verifier().verify(hs256(claims(exp=1e300))).expires_at_s == 2**53 - 1


def test_time_passes_for_a_known_header_too() -> None:
    now = [float(NOW_S)]
    subject = verifier(lambda: now[0])
    token = hs256()
    subject.verify(token)
    now[0] += 3600 + LEEWAY_S - 1
    subject.verify(token)
    now[0] += 1
    with pytest.raises(TokenRefused, match="expired 30 s ago"):
        subject.verify(token)


def test_issuer() -> None:
    subject = verifier(auth_issuer="https://id.example")
    assert subject.verify(hs256(claims(iss="https://id.example"))).user == "alice"
    assert "must be 'https://id.example'" in refusal(hs256(claims(iss="https://evil.example")), subject)
    assert "must be 'https://id.example'" in refusal(hs256(), subject)
    assert verifier().verify(hs256(claims(iss="anybody"))).user == "alice"


def test_without_an_audience_only_tokens_without_one() -> None:
    subject = verifier(auth_audience="")
    assert subject.verify(hs256(claims(aud=None))).user == "alice"
    assert "only tokens without one" in refusal(hs256(), subject)


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "...", "a.b", "a.b.c", "a.b.c.d", "not a token", "é.é.é", "eyJ.eyJ.", "\x00", hs256() + ".x"],
)
def test_garbage(token: str) -> None:
    assert "the token is not a JWT" in refusal(token) or "signature does not verify" in refusal(token)


def test_too_long_is_refused_before_anything_is_decoded() -> None:
    assert refusal("x" * 8193) == "the token has 8193 characters; allowed are 8192"


def test_payload_that_is_no_object() -> None:
    for payload in (b"[]", b"null", b"{", b"\xff", b"[" * 3000):
        message = refusal(handmade(b'{"alg":"HS256","typ":"JWT"}', payload))
        assert "claims are not acceptable" in message or "payload is not JSON" in message


def test_every_change_of_one_character_is_noticed() -> None:
    token = hs256()
    subject = verifier()
    subject.verify(token)
    for position, character in enumerate(token):
        changed = token[:position] + ("A" if character != "A" else "B") + token[position + 1 :]
        with pytest.raises(TokenRefused):
            subject.verify(changed)


def test_one_spelling_of_a_signature() -> None:
    token = hs256()
    head, _, signature = token.rpartition(".")
    subject = verifier()
    subject.verify(token)
    for spelling in (signature + "=", signature + "==", signature.replace("-", "+").replace("_", "/") + "\n"):
        if spelling != signature + "=":  # PyJWT takes right padding, as some issuers write it
            with pytest.raises(TokenRefused):
                subject.verify(f"{head}.{spelling}")


def test_critical_headers_and_detached_payloads_are_refused() -> None:
    payload = json.dumps(claims()).encode()
    for header in (b'{"alg":"HS256","crit":["exp"],"exp":1}', b'{"alg":"HS256","b64":false,"crit":["b64"]}'):
        subject = verifier()
        for _ in range(2):
            assert "not a JWT" in refusal(handmade(header, payload), subject)


header_maps = st.fixed_dictionaries(
    {"alg": st.sampled_from(["HS256", "HS256", "none", "HS512"])},
    optional={"typ": st.sampled_from(["JWT", "at+jwt"]), "kid": st.sampled_from(["k", 7]), "b64": st.booleans()},
)
near_now = st.integers(NOW_S - 40, NOW_S + 40)
claim_maps = st.fixed_dictionaries(
    {},
    optional={
        "sub": st.sampled_from(["alice", "", 5, None]) | st.text(max_size=5),
        "exp": near_now | st.sampled_from([NOW_S + 99, "1", None, True, 1e30]),
        "nbf": near_now | st.none(),
        "iat": near_now | st.none(),
        "aud": st.sampled_from(["tidegate", "x", ["tidegate"], ["x"], [], 5, None, ["tidegate", 5]]),
        "jti": st.sampled_from(["1", 5]),
    },
)


@given(header=header_maps, payload=claim_maps)
@settings(max_examples=300)
def test_whatever_is_accepted_pyjwt_accepts_too(header: dict[str, Any], payload: dict[str, Any]) -> None:
    """Neither way is laxer than PyJWT's own decode, whose clock is real: time claims are shifted to it."""
    token = handmade(json.dumps(header).encode(), json.dumps(payload).encode())
    subject = verifier()
    first = outcome(subject, token)
    assert outcome(subject, token) == first, "the short way and the long way differ"
    if isinstance(first, Identity):
        decoded = jwt.decode(
            token,
            SECRET,
            algorithms=["HS256"],
            audience="tidegate",
            options={"require": ["exp", "sub"], "verify_exp": False, "verify_nbf": False, "verify_iat": False},
        )
        assert decoded["sub"] == first.user
        assert decoded["exp"] > NOW_S - LEEWAY_S
        assert decoded.get("nbf", 0) <= NOW_S + LEEWAY_S
        assert decoded.get("iat", 0) <= NOW_S + LEEWAY_S


def outcome(subject: Verifier, token: str) -> Identity | str:
    try:
        return subject.verify(token)
    except TokenRefused as refused:
        return str(refused)


@given(st.text(alphabet="eyJ.AZaz09-_= é\x00", max_size=60) | st.text(max_size=30))
def test_garbage_raises_only_the_documented_error(token: str) -> None:
    assert isinstance(outcome(verifier(), token), str)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"auth_secret": "x" * 31}, "31 bytes; HS256 needs at least 32"),
        ({"auth_secret": public_pem("RS256").decode()}, "is a key or certificate, not a secret"),
        ({"auth_secret": private_pem("EdDSA").decode()}, "is a key or certificate, not a secret"),
        ({"auth_secret": '{"kty":"oct","k":"' + "A" * 43 + '"}'}, "is a key or certificate, not a secret"),
        ({"auth_algorithm": "HS256", "auth_key_file": "k.pem"}, "hold public keys, but auth_algorithm is HS256"),
        ({"auth_algorithm": "none"}, "'none' is not known; allowed: HS256, EdDSA, ES256, RS256"),
        ({"auth_algorithm": "RS256"}, "auth_secret is for HS256"),
        ({"auth_algorithm": "RS256", "auth_secret": ""}, "needs either auth_key_file or auth_jwks_url"),
        (
            {"auth_algorithm": "ES256", "auth_secret": "", "auth_key_file": "k", "auth_jwks_url": "https://x/"},
            "and not both",
        ),
        ({"auth_algorithm": "ES256", "auth_secret": "", "auth_jwks_url": "file:///etc/x"}, "is not an https://"),
        ({"auth_algorithm": "ES256", "auth_secret": "", "auth_key_file": "/nowhere/k"}, "No such file"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(AuthMisconfigured) as caught:
        verifier(**changes)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("pem", "algorithm", "complaint"),
    [
        (public_pem("P-384"), "ES256", "does not fit ES256"),
        (public_pem("RS256"), "ES256", "does not fit ES256"),
        (public_pem("EdDSA"), "RS256", "does not fit RS256"),
        (public_pem("Ed448"), "EdDSA", "needs an Ed25519 key"),
        (public_pem("RSA-1024"), "RS256", "1024"),
        (private_pem("RS256"), "RS256", "holds a private key"),
        (b"hello", "RS256", "holds no public key in PEM form"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "RS256", "holds no public key in PEM form"),
    ],
)
def test_key_files_that_do_not_fit(pem: bytes, algorithm: str, complaint: str, tmp_path: Path) -> None:
    key_file = tmp_path / "key.pem"
    key_file.write_bytes(pem)
    with pytest.raises(AuthMisconfigured) as caught:
        verifier(auth_secret="", auth_algorithm=algorithm, auth_key_file=str(key_file))
    assert complaint in str(caught.value)
    assert str(key_file) in str(caught.value)
