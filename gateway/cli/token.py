"""``tidegate token``: a development token for a user."""

import re
from pathlib import Path
from typing import Final

import click

from gateway.cli.errors import USAGE, CliError
from gateway.cli.settings_options import settings_of, settings_options
from gateway.config import Settings
from protocol import limits
from protocol.frames import is_user_id

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[int]):
    """A duration such as 90, 90s, 15m, 1h or 7d, converted to seconds (int)."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds; fails with the allowed forms."""
        match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", str(value))
        if match is None or int(match[1]) == 0:
            self.fail(f"{value!r} is not a duration; allowed: a whole number above 0 and s, m, h or d, such as 1h")
        return int(match[1]) * _UNITS_S[match[2] or "s"]


@click.command()
@click.argument("user")
@click.option(
    "--ttl",
    type=Duration(),
    default="1d",
    show_default=True,
    metavar="DURATION",
    help="how long it lives: 90s, 15m, 1h",
)
@settings_options("data_dir", "auth_algorithm", "auth_secret", "auth_audience", "auth_issuer")
def command(user: str, ttl: int, config_file: Path | None, **options: object) -> None:
    """Print a token that lets USER connect.

    It is signed with the secret that the node made on its first start and keeps in its data directory, or with
    the configured auth_secret. For development: in production, tokens come from your identity provider.

    \b
    curl -H "Authorization: Bearer $(tidegate token alice)" http://127.0.0.1:8480/v1/conversations
    """
    click.echo(token_for(user, settings_of(config_file, options), ttl))


def token_for(user: str, settings: Settings, ttl_s: int | None = None) -> str:
    """A token that a node with these settings accepts, for a day unless told otherwise.

    Raises:
        CliError: ``user`` is no user id, or such a node takes no tokens that are made here.
    """
    from gateway.auth import AuthMisconfigured, SecretUnusable, development_token, sign_token
    from gateway.auth.development import DEVELOPMENT_TOKEN_TTL_S
    from gateway.auth.keys import hmac_secret

    ttl_s = ttl_s or DEVELOPMENT_TOKEN_TTL_S
    if not is_user_id(user):
        raise CliError(
            f"the user id has {len(user)} characters; allowed are 1 to {limits.USER_ID_CHARS_MAX}, all printable", USAGE
        )
    if settings.auth_algorithm != "HS256":
        raise CliError(
            f"this node accepts {settings.auth_algorithm} tokens, which only your token issuer can make; "
            "development tokens need auth_algorithm HS256",
            USAGE,
        )
    audience, issuer = settings.auth_audience, settings.auth_issuer
    try:
        if settings.auth_secret:
            hmac_secret(settings.auth_secret)
            return sign_token(settings.auth_secret, user, ttl_s=ttl_s, audience=audience, issuer=issuer)
        return development_token(settings.data_dir, user, ttl_s=ttl_s, audience=audience, issuer=issuer)
    except (SecretUnusable, AuthMisconfigured) as error:
        raise CliError(str(error)) from None
