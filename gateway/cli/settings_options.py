"""Every setting as a command line option, generated from ``Settings``: no option can be forgotten or contradict it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.cli.errors import USAGE, CliError
from gateway.config import Settings
from gateway.config_load import SETTINGS, ConfigError, Effective, Setting, load_effective

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

PRECEDENCE = (
    "Options win over TIDEGATE_* environment variables (--idle-timeout-s is TIDEGATE_IDLE_TIMEOUT_S), these over the "
    "TOML file (idle_timeout_s = 90), this over the defaults shown here."
)


def settings_options(*only: str) -> Callable[[_Decorated], _Decorated]:
    """Add ``--config`` and an option per setting (or only those named) to a command; it gets them as keywords."""

    def decorate(function: _Decorated) -> _Decorated:
        for setting in reversed([s for s in SETTINGS.values() if not only or s.name in only]):
            function = _option(setting)(function)
        return click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML file with settings  [default: TIDEGATE_CONFIG, else ./tidegate.toml if it is there]",
        )(function)

    return decorate


def effective(config_file: Path | None, options: Mapping[str, object]) -> Effective:
    """The settings in force, given a command's options. Raises CliError with the usage exit code."""
    given = {
        name: ",".join(value) if isinstance(value, tuple) else value  # as in an environment variable
        for name, value in options.items()
        if value is not None and value != ()
    }
    try:
        return load_effective(given, os.environ, config_file)
    except ConfigError as error:
        raise CliError(str(error), USAGE) from None


def settings_of(config_file: Path | None, options: Mapping[str, object]) -> Settings:
    """The settings alone; see ``effective``."""
    return effective(config_file, options).settings


def embedded_data_dir(config_file: Path | None, options: Mapping[str, object]) -> Path:
    """The data directory of a node that keeps its conversations there. Raises CliError if these settings' do not."""
    found = effective(config_file, options)
    if found.settings.store != "embedded":
        raise CliError(
            f"store is {found.settings.store} (from {found.sources['store']}): the conversations are in Cassandra, not "
            "in a data directory; use Cassandra's own backups (nodetool snapshot), or give the settings of a single "
            "node",
            USAGE,
        )
    return found.settings.data_dir


def _option(setting: Setting) -> Callable[[_Decorated], _Decorated]:
    # Values stay text here: the one place that judges them is config_load, whatever their source.
    return click.option(
        setting.option,
        setting.name,
        default=None,
        multiple=setting.kind is list,
        metavar=_metavar(setting),
        help=_help(setting),
    )


def _metavar(setting: Setting) -> str:
    if setting.choices:
        return "|".join(setting.choices)
    return {int: "N", float: "X", Path: "DIR"}.get(setting.kind, "TEXT")


def _help(setting: Setting) -> str:
    notes = []
    if setting.kind in {int, float}:
        notes.append(setting.allowed)
        notes.append(f"default: {setting.default:g}" if setting.kind is float else f"default: {setting.default}")
    elif setting.default:
        notes.append(f"default: {setting.default}")
    if setting.kind is list:
        notes.append("several: with commas, or repeated")
    if setting.secret:
        notes.append(f"others can read options: better in {setting.variable} or the file")
    return setting.meaning + (f"  [{'; '.join(notes)}]" if notes else "")
