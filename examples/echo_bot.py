"""A bot that repeats what it is told. Try: python examples/echo_bot.py --token "$(tidegate token echo)"."""

import argparse
import sys
from typing import Any

import trio

from protocol.client import MessageReceived, Refused, RequestTimeout, connect


async def echo(url: str, token: str, **options: Any) -> None:
    """Answer every message with itself, for ever; reconnects and retries are the client's business."""
    async with connect(url, token=token, device="echo-bot", **options) as client:
        async for event in client.events():
            if isinstance(event, MessageReceived) and event.sender != client.user:
                try:
                    await client.send(event.conversation_id, event.body)
                    await client.mark_read(event.conversation_id, event.seq)
                except (Refused, RequestTimeout) as error:  # it was removed meanwhile, say: the others go on talking
                    print(f"{event.conversation_id}: {error}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="ws://127.0.0.1:8480", help="where the node listens")
    parser.add_argument("--token", required=True, help="the bot's token")
    arguments = parser.parse_args()
    trio.run(echo, arguments.url, arguments.token)
