"""``tidegate config``: print the settings in force."""

import json
from pathlib import Path

import click

from gateway.cli.settings_options import PRECEDENCE, effective, settings_options
from gateway.config_load import SETTINGS, Effective, Setting

_COMMENT_COLUMN = 44
"""Where the sources begin, in columns: behind nearly all settings."""


@click.command(epilog=PRECEDENCE)
@click.option("--json", "as_json", is_flag=True, help="one JSON object: key to value, unit, meaning, source, default")
@settings_options()
def command(as_json: bool, config_file: Path | None, **options: object) -> None:
    """Print the settings that a node started the same way would have.

    The output is TOML, with a comment per key (meaning, unit, what is allowed, where the value came from), and can be
    used as a configuration file. Secrets are masked.
    """
    found = effective(config_file, options)
    click.echo(as_json_text(found) if as_json else as_toml(found))


def as_toml(found: Effective) -> str:
    """The settings as a TOML file with comments."""
    lines = ["# tidegate: the settings in force; options win over TIDEGATE_* variables, these over the file."]
    for setting in SETTINGS.values():
        value = getattr(found.settings, setting.name)
        lines.append("")
        lines.append(f"# {setting.meaning}; allowed: {setting.allowed}")
        if setting.secret and value:
            line = f"# {setting.name} is set, and not shown"
        else:
            line = f"{setting.name} = {_toml(value)}"
        lines.append(f"{line:<{_COMMENT_COLUMN}}  # from {_printable(found.sources[setting.name])}")
    return "\n".join(lines)


def as_json_text(found: Effective) -> str:
    """The settings as one JSON object."""
    return json.dumps({name: _described(setting, found) for name, setting in SETTINGS.items()}, indent=2)


def _described(setting: Setting, found: Effective) -> dict[str, object]:
    value = getattr(found.settings, setting.name)
    return {
        "value": "********" if setting.secret and value else _json_value(value),
        "unit": setting.unit,
        "meaning": setting.meaning,
        "allowed": setting.allowed,
        "source": found.sources[setting.name],
        "default": _json_value(setting.default),
    }


def _json_value(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str | Path):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)


def _printable(source: str) -> str:
    return source if source.isprintable() else repr(source)
