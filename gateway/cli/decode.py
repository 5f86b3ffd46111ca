"""``tidegate decode``: show captured frames in readable form."""

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.cli.captures import CaptureError, Messages, Shown, parse_file, parse_text, read_capture
from gateway.cli.errors import FAILURE, USAGE, CliError


@click.command()
@click.argument("capture", nargs=-1)
@click.option(
    "--file", "-f", "file", type=click.Path(path_type=Path), help="read a file of captured frames; - reads stdin"
)
@click.option("--json", "as_json", is_flag=True, help="print one JSON object a frame")
def command(capture: tuple[str, ...], file: Path | None, as_json: bool) -> None:
    """Show captured frames in readable form.

    CAPTURE is hex (spaces, colons and 0x are fine), base64, or a JSON frame; several words are taken together. A file
    holds raw bytes, or one capture a line (lines with # are comments).

    Bare payloads (msgpack or JSON) and WebSocket frames are told apart by themselves; WebSocket frames may be masked
    (from a client) or not (from a node), fragmented, and follow each other. Tokens are shown shortened.

    \b
    tidegate decode 82 83 37fa213d a5f820
    tidegate decode '[3,7,"dq83Lx0PzY5cT1vB7nKsWmEaR","m1","hi"]'
    tidegate decode --file capture.bin --json

    Exit code 0: all of it was readable; 1: something was not, which the output or the last line names; 2: wrong usage.
    """
    problems = 0
    messages: Messages = {}
    for data in _captures(capture, file):
        try:
            for shown in read_capture(data, messages):
                problems += bool(shown.problem)
                click.echo(msgspec.json.encode(shown) if as_json else as_text(shown))
        except CaptureError as error:
            raise CliError(str(error), FAILURE) from None
    if problems:
        raise CliError(f"{problems} of these cannot be read as a frame of tidegate.v1: see 'problem' above", FAILURE)


def _captures(words: tuple[str, ...], file: Path | None) -> list[bytes]:
    if bool(words) == (file is not None):
        raise CliError("give either a capture (hex, base64 or JSON) or --file FILE", USAGE)
    try:
        if file is None:
            return [parse_text(" ".join(words))]
        return parse_file(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}", USAGE) from None
    except CaptureError as error:
        raise CliError(f"{file}: {error}" if file else str(error), USAGE) from None


def as_text(shown: Shown) -> str:
    """One frame for a person: what it is, then a field a line."""
    lines = []
    if shown.ws is not None:
        mask = "masked" if shown.ws["masked"] else "not masked"
        fin = "" if shown.ws["fin"] else ", to be continued"
        lines.append(
            f"WebSocket {shown.ws['opcode']} of a {shown.ws['from']}: {shown.ws['payload_bytes']} bytes, {mask}{fin}"
        )
    if shown.frame:
        lines.append(f"{shown.frame} ({shown.kind})")
    lines += [line for name, value in shown.fields.items() for line in _field(name, value, 1)]
    if shown.problem:
        lines.append(f"  problem: {shown.problem}")
    return "\n".join(lines)


def _field(name: str, value: Any, depth: int) -> list[str]:
    """A field; maps and lists of maps are indented below it."""
    indent = "  " * depth
    if isinstance(value, dict) and value:
        return [f"{indent}{name}:", *(line for key, part in value.items() for line in _field(key, part, depth + 1))]
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return [
            f"{indent}{name}:",
            *(line for place, part in enumerate(value) for line in _field(f"[{place}]", part, depth + 1)),
        ]
    return [f"{indent}{name}: {msgspec.json.encode(value).decode()}"]
