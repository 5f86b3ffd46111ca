"""What a token says, and whether that is acceptable. Signatures are checked elsewhere, before this."""

from typing import Final

import msgspec
from msgspec import Struct

from protocol import limits
from protocol.frames import is_user_id

EXPIRY_S_MAX: Final = 2**53 - 1
"""Seconds since the Unix epoch: later expiries are taken for this one, which every client can represent."""


class TokenRefused(Exception):
    """A token is not acceptable. The message says what is wrong and what is allowed, and never contains the token."""


class UnknownKey(TokenRefused):
    """The token names a key that this node does not have; fetching the keys anew may help (``verify_fresh``)."""


class Identity(Struct, frozen=True, gc=False):
    """Whom a verified token speaks for.

    Attributes:
        user: the user id (the ``sub`` claim).
        expires_at_s: when the token runs out (``exp``), seconds since the Unix epoch; the leeway is not in it.
    """

    user: str
    expires_at_s: int


class Claims(Struct, gc=False):
    """The claims (RFC 7519 section 4.1) that this node looks at; others are passed over."""

    sub: str
    exp: int | float
    nbf: int | float = 0
    iat: int | float = 0
    aud: str | list[str] = ""
    iss: str = ""
    jti: str = ""


_decode = msgspec.json.Decoder(Claims).decode


def decode_claims(payload: bytes) -> Claims:
    """Read the JSON payload of a token.

    Raises:
        TokenRefused: not JSON, a claim missing or of the wrong type; the message names it.
    """
    try:
        return _decode(payload)
    except msgspec.ValidationError as error:
        # msgspec names the field and both types, never the value.
        raise TokenRefused(
            f"the token's claims are not acceptable: {error}; sub (a string) and exp (a number) are required"
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise TokenRefused("the token's payload is not JSON") from None


class ClaimRules(Struct, frozen=True, gc=False):
    """What this node demands of claims. ``audience`` empty: no token with ``aud``; ``issuer`` empty: any."""

    audience: str
    issuer: str

    def identity(self, claims: Claims, now_s: float) -> Identity:
        """The identity that ``claims`` give at ``now_s`` (seconds since the Unix epoch).

        Raises:
            TokenRefused: a rule is broken; the message says which and what is allowed.
        """
        if claims.exp <= now_s - limits.TOKEN_LEEWAY_S:
            raise TokenRefused(f"the token expired {_between(claims.exp, now_s)} ago; get a new one")
        if claims.nbf > now_s + limits.TOKEN_LEEWAY_S:
            raise TokenRefused(f"the token is not valid yet: its nbf is {_between(now_s, claims.nbf)} ahead")
        if claims.iat > now_s + limits.TOKEN_LEEWAY_S:
            raise TokenRefused(f"the token was issued in the future: its iat is {_between(now_s, claims.iat)} ahead")
        if claims.aud != self.audience:
            self._check_audience(claims.aud)
        if self.issuer and claims.iss != self.issuer:
            raise TokenRefused(f"the token's iss is not acceptable; it must be {self.issuer!r}")
        user = claims.sub
        if not is_user_id(user):
            raise TokenRefused(
                f"the token's sub has {len(user)} characters; a user id has 1 to {limits.USER_ID_CHARS_MAX}, "
                "all of them printable"
            )
        return Identity(user, int(min(claims.exp, EXPIRY_S_MAX)))

    def _check_audience(self, aud: str | list[str]) -> None:
        if not self.audience:
            if aud:
                raise TokenRefused("the token has an aud claim, but this node accepts only tokens without one")
        elif not aud:
            raise TokenRefused(f"the token has no aud claim; it must name {self.audience!r}")
        elif isinstance(aud, str) or self.audience not in aud:
            raise TokenRefused(f"the token is for another audience; its aud must name {self.audience!r}")


def _between(earlier_s: float, later_s: float) -> str:
    """How long it is, in words; whole numbers too large for a float are among what tokens say."""
    return f"{min(min(later_s, EXPIRY_S_MAX) - max(earlier_s, -EXPIRY_S_MAX), EXPIRY_S_MAX):.0f} s"
