"""From a token to an identity: one algorithm, fixed by the settings; nothing in a token chooses it."""

import binascii
import hmac
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import jwt
import trio

from gateway.auth.claims import ClaimRules, Identity, TokenRefused, UnknownKey, decode_claims
from gateway.auth.development import development_secret
from gateway.auth.jwks import Fetch, JwksKeys, fetch
from gateway.auth.keys import PUBLIC_KEY_ALGORITHMS, AuthMisconfigured, PublicKey, hmac_secret, public_key_from_file
from gateway.config import Settings
from protocol import limits

KNOWN_HEADERS_MAX: Final = 64
"""Token headers remembered as acceptable. An issuer uses one or two, a few more over key rotations."""

_FROM_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_PADDING: Final = (b"", b"===", b"==", b"=")
_BAD_SIGNATURE: Final = "the token's signature does not verify: it was signed with another key, or changed"


class Verifier:
    """Verifies tokens of one algorithm family. Make it with ``from_settings``; ``run`` keeps a JWKS fresh.

    Tokens of HS256 take a short way where they can: the header is one that PyJWT accepted before, with this secret,
    and the HMAC matches. All else, and everything that is to be refused, goes through PyJWT. Both ways meet in the same
    check of the claims. (Measured: 4 us instead of 32 us, of which the HMAC takes 1.7 us.)

    Attributes:
        algorithm: the one algorithm that is accepted.
        jwks: the fetched keys, where the settings name a JWKS.
    """

    def __init__(
        self,
        algorithm: str,
        rules: ClaimRules,
        *,
        secret: bytes = b"",
        key: PublicKey | None = None,
        jwks: JwksKeys | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        assert (algorithm == "HS256") == bool(secret) == (key is None and jwks is None)
        self.algorithm: Final = algorithm
        self._rules = rules
        self._secret = secret
        self._key = key
        self.jwks: Final = jwks
        self._now_s = now_s
        self._jws = jwt.PyJWS(algorithms=[algorithm])
        self._known_headers: set[bytes] = set()

    @classmethod
    def from_settings(
        cls, settings: Settings, *, now_s: Callable[[], float] = time.time, fetch: Fetch = fetch
    ) -> "Verifier":
        """A verifier as the settings say. Makes the development secret when HS256 has none.

        Raises:
            AuthMisconfigured: the settings contradict each other, or a key is missing or unfit.
            SecretUnusable: the development secret cannot be read or made.
        """
        rules = ClaimRules(settings.auth_audience, settings.auth_issuer)
        algorithm = settings.auth_algorithm
        if algorithm == "HS256":
            if settings.auth_key_file or settings.auth_jwks_url:
                raise AuthMisconfigured(
                    "auth_key_file and auth_jwks_url hold public keys, but auth_algorithm is HS256; "
                    f"set it to one of {', '.join(PUBLIC_KEY_ALGORITHMS)}"
                )
            secret = settings.auth_secret or development_secret(settings.data_dir)
            return cls(algorithm, rules, secret=hmac_secret(secret), now_s=now_s)
        if algorithm not in PUBLIC_KEY_ALGORITHMS:
            raise AuthMisconfigured(
                f"auth_algorithm {algorithm!r} is not known; allowed: HS256, {', '.join(PUBLIC_KEY_ALGORITHMS)}"
            )
        if settings.auth_secret:
            raise AuthMisconfigured(f"auth_secret is for HS256, but auth_algorithm is {algorithm}; remove one of them")
        if bool(settings.auth_key_file) == bool(settings.auth_jwks_url):
            raise AuthMisconfigured(f"{algorithm} needs either auth_key_file or auth_jwks_url, and not both")
        if settings.auth_key_file:
            key = public_key_from_file(Path(settings.auth_key_file), algorithm)
            return cls(algorithm, rules, key=key, now_s=now_s)
        jwks = JwksKeys(settings.auth_jwks_url, algorithm, settings.auth_jwks_refresh_s, fetch)
        return cls(algorithm, rules, jwks=jwks, now_s=now_s)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the JWKS fresh for ever, whether or not its provider answers; without a JWKS, return at once.

        Started after the first try to fetch. Cancelling leaves the keys as they are.
        """
        if self.jwks is None:
            task_status.started()
            return
        await self.jwks.run(task_status=task_status)

    def verify(self, token: str) -> Identity:
        """The identity that ``token`` proves.

        Raises:
            UnknownKey: its ``kid`` is not among the keys fetched so far; ``verify_fresh`` may know better.
            TokenRefused: it is not acceptable; the message says why, without the token.
        """
        if len(token) > limits.TOKEN_CHARS_MAX:
            raise TokenRefused(f"the token has {len(token)} characters; allowed are {limits.TOKEN_CHARS_MAX}")
        try:
            raw = token.encode("ascii")
        except UnicodeEncodeError:
            raise TokenRefused("the token is not a JWT: it has characters beyond ASCII") from None
        payload = self._verified_quickly(raw) if self._secret else None
        if payload is None:
            payload = self._verified(raw)
        return self._rules.identity(decode_claims(payload), self._now_s())

    async def verify_fresh(self, token: str) -> Identity:
        """As ``verify``, but a ``kid`` that is not known makes the node look for it in a newly fetched JWKS.

        Fetches are few however many tokens ask for them (``JwksKeys.refresh``). Cancelling changes nothing.
        """
        try:
            return self.verify(token)
        except UnknownKey:
            if self.jwks is None:
                raise
            await self.jwks.refresh()
        return self.verify(token)

    def _verified_quickly(self, raw: bytes) -> bytes | None:
        """The payload of an HS256 token with a known header and a matching HMAC; None: PyJWT has to say."""
        signed, _, signature = raw.rpartition(b".")
        header, _, payload = signed.partition(b".")
        if header not in self._known_headers:
            return None
        # A digest of 32 bytes is 43 characters and one of padding. Comparing the text leaves one spelling only.
        expected = binascii.b2a_base64(hmac.digest(self._secret, signed, "sha256"), newline=False)
        if not hmac.compare_digest(expected, signature.translate(_FROM_URL_SAFE) + b"="):
            return None
        try:
            return binascii.a2b_base64(payload.translate(_FROM_URL_SAFE) + _PADDING[len(payload) % 4], strict_mode=True)
        except binascii.Error:
            return None

    def _verified(self, raw: bytes) -> bytes:
        """The payload of a token whose signature PyJWT verified."""
        key = self._secret or self._public_key(raw)
        try:
            payload: bytes = self._jws.decode(raw, key, algorithms=[self.algorithm])
        except jwt.InvalidAlgorithmError:
            raise TokenRefused(f"the token's alg is not accepted; this node accepts {self.algorithm} only") from None
        except jwt.InvalidSignatureError:
            raise TokenRefused(_BAD_SIGNATURE) from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise _not_a_jwt() from None
        if self._secret and len(self._known_headers) < KNOWN_HEADERS_MAX:
            self._known_headers.add(raw.partition(b".")[0])
        return payload

    def _public_key(self, raw: bytes) -> PublicKey:
        """The key that a token is to be verified with: the only one, or the one that its header names."""
        if self.jwks is None:
            return self._key
        try:
            kid = self._jws.get_unverified_header(raw).get("kid")
        except (jwt.PyJWTError, ValueError, TypeError):
            raise _not_a_jwt() from None
        keys = self.jwks.by_kid
        if not keys:
            raise UnknownKey("this node could not fetch the public keys of its token issuer yet; try again later")
        if kid is None:
            if len(keys) == 1:
                return next(iter(keys.values()))
            raise TokenRefused(f"the token names no key (kid), but its issuer has {len(keys)}; it must name one")
        if kid not in keys:
            raise UnknownKey("the token names a key (kid) that its issuer does not publish")
        return keys[kid]


def _not_a_jwt() -> TokenRefused:
    return TokenRefused("the token is not a JWT: three parts in base64url, with dots between them, are expected")
