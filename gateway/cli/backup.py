"""``tidegate backup``: copy the embedded store to a file, while the node runs."""

from pathlib import Path

import click

from gateway.cli.errors import CliError
from gateway.cli.settings_options import embedded_data_dir, settings_options
from store.backup import back_up
from store.interface import StoreError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@settings_options("data_dir")
def command(file: Path, config_file: Path | None, **options: object) -> None:
    """Copy the embedded store to FILE, while the node runs.

    FILE then has everything that was acknowledged before the backup began, in the state of one moment, and is checked.
    It must not exist; its name appears only when it is complete. Sends go on meanwhile.

    The development secret is not part of it. Example: tidegate backup tidegate-monday.db
    """
    data_dir = embedded_data_dir(config_file, options)
    try:
        contents = back_up(data_dir, file)
    except StoreError as error:
        raise CliError(str(error)) from None
    click.echo(
        f"backed up {contents.conversations} conversations with {contents.entries} entries "
        f"to {file} ({contents.file_bytes} bytes)"
    )
