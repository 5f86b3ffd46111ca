"""``tidegate chat``: chat in the terminal, or from a script."""

import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import trio

from gateway.cli.errors import USAGE, CliError
from gateway.cli.settings_options import settings_of, settings_options
from gateway.cli.token import token_for
from protocol import limits

if TYPE_CHECKING:
    from gateway.cli.chat_session import Goal
    from protocol.client import TokenProvider


@click.command()
@click.option("--as", "user", required=True, metavar="USER", help="who you are")
@click.option(
    "--to", "peers", multiple=True, metavar="USER", help="whom to chat with; yourself: notes; several: see --group"
)
@click.option(
    "--group", default="", metavar="ID|TITLE", help="chat in this group; with --to it is created if there is none"
)
@click.option(
    "--url", default="http://127.0.0.1:8480", show_default=True, envvar="TIDEGATE_URL", help="where the node listens"
)
@click.option(
    "--token", default="", envvar="TIDEGATE_TOKEN", help="your token; without one, it is made as tidegate token does"
)
@click.option("--device", default="", metavar="NAME", help="name of this device; default: a new one each time")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object an event, for scripts")
@settings_options("data_dir")
def command(
    user: str, peers: tuple[str, ...], group: str, url: str, token: str, device: str, as_json: bool,
    config_file: Path | None, **options: object,
) -> None:  # fmt: skip
    """Chat in the terminal, or from a script.

    On a terminal: history on entry, live messages, who is typing, and how far each of your messages is
    (· stored, ✓ delivered, ✓✓ read). A lost connection comes back by itself, and nothing is lost meanwhile.

    With piped input it sends a message for each line and exits when all are acknowledged. With --json it also
    prints what happens, until the input ends: docs/chat.md lists the events and their fields.

    \b
    tidegate chat --as alice --to bob
    echo hello | tidegate chat --as alice --to bob
    tidegate chat --as alice --group Team --to bob --to carol
    """
    if not peers and not group:
        raise CliError("with whom? name a user by --to, or a group by --group", USAGE)
    for name in (user, *peers):
        if not 0 < len(name) <= limits.USER_ID_CHARS_MAX:
            text = f"a user id has 1 to {limits.USER_ID_CHARS_MAX} characters; {name[:20]!r} has {len(name)}"
            raise CliError(text, USAGE)
    from gateway.cli.chat_session import Goal

    tokens = token or _development_tokens(user, config_file, options)
    trio.run(_chat, Goal(user, list(peers), group), url, tokens, device or f"chat-{secrets.token_hex(4)}", as_json)


async def _chat(goal: "Goal", url: str, token: "TokenProvider", device: str, as_json: bool) -> None:
    from gateway.cli.chat_person import Person
    from gateway.cli.chat_script import Script
    from gateway.cli.chat_session import open_chat, plainly
    from protocol.client import connect
    from protocol.client.wire import parse_url

    try:
        parse_url(url)
    except ValueError as error:
        raise CliError(str(error), USAGE) from None

    async def work() -> None:
        async with connect(url, token=token, device=device) as client:
            chat = await open_chat(client, goal)
            if as_json or not sys.stdin.isatty():
                await Script(chat, json=as_json).run()
            else:
                await Person(chat).run()

    await plainly(work)


def _development_tokens(
    user: str, config_file: Path | None, options: Mapping[str, object]
) -> Callable[[], Awaitable[str]]:
    """A provider of development tokens for ``user``, which a node with the same settings accepts.

    Raises:
        CliError: none can be made.
    """
    settings = settings_of(config_file, options)

    def make() -> str:
        try:
            return token_for(user, settings)
        except CliError as error:
            raise CliError(f"{error.message}; or pass a token with --token", error.exit_code) from None

    make()

    async def provider() -> str:
        return await trio.to_thread.run_sync(make)

    return provider
