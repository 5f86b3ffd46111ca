"""Who a client is: tokens are verified here, and made here for development. No other module touches keys."""

from gateway.auth.claims import Identity, TokenRefused, UnknownKey
from gateway.auth.development import SecretUnusable, development_secret, development_token, existing_secret, sign_token
from gateway.auth.keys import AuthMisconfigured
from gateway.auth.verifier import Verifier

__all__ = [
    "AuthMisconfigured",
    "Identity",
    "SecretUnusable",
    "TokenRefused",
    "UnknownKey",
    "Verifier",
    "development_secret",
    "development_token",
    "existing_secret",
    "sign_token",
]
