"""``tidegate check``: judge a recorded history."""

from pathlib import Path

import click
import msgspec

from gateway.check.sometimes import NAMES
from gateway.cli.errors import FAILURE, USAGE, CliError


@click.command()
@click.argument("history", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of a table")
@click.option(
    "--sometimes",
    "demanded",
    multiple=True,
    metavar="NAME",
    help="fail, too, unless this happened at least once (kill, reconnect, duplicate-answered, …); may be repeated",
)
@click.pass_context
def command(ctx: click.Context, history: Path, as_json: bool, demanded: tuple[str, ...]) -> None:
    """Check what clients saw against what tidegate promises.

    HISTORY holds one JSON object a line: what each client asked (invoke), how that ended (ok, fail or info), and what
    it was pushed; docs/history.md describes the format. Every promise is judged, each breach named:

    \b
    lost-write        an acknowledged entry is not in the final read
    duplicate         one client_msg_id has two places
    inconsistent      one seq has two contents
    nonmonotonic-send acknowledgements out of order
    poll-skip         a push left out, or handed on twice
    late-arrival      a new entry behind one that was seen
    stale-read        a read that went back
    phantom           an entry that was refused, or that nobody sent
    realtime          sent later, ordered before
    split-brain       an old owner acknowledged after a new one began
    bucket-gap        a hole in the numbers
    leak              something not delivered, or a resource not returned
    leak-to-outsider  somebody received an entry without being a member

    Exit code 0: nothing found; 1: a promise was broken; 2: the file is not a history.
    """
    from gateway.check.checker import check
    from gateway.check.history import HistoryError, parse

    for name in demanded:
        if name not in NAMES:
            raise click.UsageError(f"there is no event {name!r}; allowed: {', '.join(NAMES)}", ctx)
    try:
        with history.open("rb") as file:
            report = check(parse(file))
    except OSError as error:
        raise CliError(f"cannot read {history}: {error.strerror}", USAGE) from None
    except HistoryError as error:
        raise CliError(f"{history} is not a history: {error}", USAGE) from None
    missing = [name for name in demanded if not report.sometimes[name]]
    if as_json:
        click.echo(msgspec.json.encode(report.as_dict() | {"not_seen": missing}))
    else:
        click.echo(report.as_text())
        for name in missing:
            click.echo(f"never happened: {name}; this run proves less than it should")
    ctx.exit(0 if report.ok and not missing else FAILURE)
