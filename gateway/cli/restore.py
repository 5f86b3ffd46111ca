"""``tidegate restore``: put a backup into a new data directory."""

from pathlib import Path

import click

from gateway.cli.errors import FAILURE, UNAVAILABLE, CliError
from gateway.cli.settings_options import embedded_data_dir, settings_options
from store.backup import restore
from store.embedded_directory import DataDirLocked
from store.interface import StoreError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@settings_options("data_dir")
def command(file: Path, config_file: Path | None, **options: object) -> None:
    """Put the backup FILE into a data directory that has no store yet.

    The backup is checked first (pages, indexes, no gap in any conversation), and the store appears only when it is
    complete. No node may be using the directory. Start one on it afterwards: tidegate serve --data-dir DIR
    """
    data_dir = embedded_data_dir(config_file, options)
    try:
        contents = restore(file, data_dir)
    except StoreError as error:
        raise CliError(str(error), UNAVAILABLE if isinstance(error, DataDirLocked) else FAILURE) from None
    click.echo(f"restored {contents.conversations} conversations with {contents.entries} entries to {data_dir}")
