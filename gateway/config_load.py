"""Settings from options, environment and file, in that order of precedence, with errors that say where and what."""

import difflib
import ipaddress
import re
import sys
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta, Struct
from msgspec.structs import fields as struct_fields

from gateway.addresses import parse_advertised
from gateway.cluster.redis_url import UrlError, parse_redis_url
from gateway.config import CLUSTER_SECRET_CHARACTERS_MIN, Settings

ENVIRONMENT_PREFIX: Final = "TIDEGATE_"
CONFIG_VARIABLE: Final = "TIDEGATE_CONFIG"
"""Environment variable that names the TOML file."""

DEFAULT_FILE: Final = Path("tidegate.toml")
"""Read from the working directory when no file is named and this one is there."""

PORT_MAX: Final = 65535

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*\sA-Z]+")
"""An origin as RFC 6454 section 6.2 writes it: it is compared letter by letter with what a browser sends."""

OTHER_VARIABLES: Final = frozenset({CONFIG_VARIABLE, "TIDEGATE_TOKEN", "TIDEGATE_URL"})
"""Variables of other commands; all else with the prefix has to be a setting, so that a typing error is noticed."""


class ConfigError(Exception):
    """A setting is unknown, of the wrong type or out of range; the message names it, its source and what is allowed."""


class Setting(Struct, frozen=True):
    """What is known of one setting besides its value. ``kind`` is int, float, str, Path or list (of str)."""

    name: str
    kind: type
    meaning: str
    unit: str
    secret: bool
    choices: tuple[str, ...]
    ge: float | None
    le: float | None
    default: object

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def allowed(self) -> str:
        """What values are allowed, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind is list:
            return "a list of texts"
        if self.kind is Path:
            return "the path of a directory"
        if self.kind not in {int, float}:
            return "a text"
        noun = "a whole number" if self.kind is int else "a number"
        if self.ge is not None and self.le is not None:
            noun += f" from {self.ge:g} to {self.le:g}"
        elif self.ge is not None:
            noun += f" of at least {self.ge:g}"
        return noun + (f" ({self.unit})" if self.unit else "")


class Effective(Struct, frozen=True):
    """Settings in force. ``sources`` says for each where it came from: an option, a variable, a file or default."""

    settings: Settings
    sources: dict[str, str]


def _describe() -> dict[str, Setting]:
    described = {}
    hints = typing.get_type_hints(Settings, include_extras=True)
    for field in struct_fields(Settings):
        annotated = hints[field.name]
        assert typing.get_origin(annotated) is Annotated, f"{field.name} has no meaning and unit"
        hint, meta = typing.get_args(annotated)
        assert isinstance(meta, Meta)
        extra = meta.extra or {}
        described[field.name] = Setting(
            name=field.name,
            kind=typing.get_origin(hint) or hint,
            meaning=meta.description or "",
            unit=extra["unit"],
            secret=extra["secret"],
            choices=extra["choices"],
            ge=meta.ge,
            le=meta.le,
            default=getattr(Settings(), field.name),
        )
    return described


SETTINGS: Final[Mapping[str, Setting]] = _describe()
"""Every setting, by name, in the order of ``Settings``."""


def load(options: Mapping[str, object], environ: Mapping[str, str], path: Path | None = None) -> Settings:
    """The settings in force; see ``load_effective``."""
    return load_effective(options, environ, path).settings


def load_effective(options: Mapping[str, object], environ: Mapping[str, str], path: Path | None = None) -> Effective:
    """Settings from ``options`` (None counts as not given), TIDEGATE_* variables, the TOML file and defaults.

    The file is ``path``, or what TIDEGATE_CONFIG names, or ./tidegate.toml if that is there.

    Raises:
        ConfigError: a setting, its value, or a combination of them is not acceptable, or the file is not readable.
    """
    values: dict[str, object] = {}
    sources = dict.fromkeys(SETTINGS, "default")
    for name, source, value in _given(options, environ, path):
        values[name] = _convert(SETTINGS[name], value, source)
        sources[name] = source
    settings = Settings(**values)  # type: ignore[arg-type]
    _check_relations(settings, sources)
    return Effective(settings, sources)


def _given(
    options: Mapping[str, object], environ: Mapping[str, str], path: Path | None
) -> Iterable[tuple[str, str, object]]:
    """All that was given, as (name, source, value), later ones overriding earlier ones."""
    file = _file(environ, path)
    if file is not None:
        for name, value in _read(file).items():
            _require_known(name, f"unknown key {name!r} in {file}", SETTINGS)
            yield name, str(file), value
    variables = {setting.variable: name for name, setting in SETTINGS.items()}
    for variable, text in sorted(environ.items()):
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in OTHER_VARIABLES:
            _refuse_service_link(variable, text)
            _require_known(variable, f"unknown environment variable {variable}", variables)
            yield variables[variable], variable, _Text(text)
    for name, value in options.items():
        _require_known(name, f"unknown option {name!r}", SETTINGS)
        if value is not None:
            yield name, SETTINGS[name].option, _Text(value) if isinstance(value, str) else value


class _Text(str):
    """A value that came as text, whatever its type is to be."""

    __slots__ = ()


def _file(environ: Mapping[str, str], path: Path | None) -> Path | None:
    if path is not None:
        return path
    if environ.get(CONFIG_VARIABLE):
        return Path(environ[CONFIG_VARIABLE])
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def _read(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"the configuration file {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {file} is not TOML: {error}") from None


def _require_known(name: str, complaint: str, known: Iterable[str]) -> None:
    known = list(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "tidegate config prints all there are"
    raise ConfigError(f"{complaint}; {hint}")


def _refuse_service_link(variable: str, text: str) -> None:
    """Name the trap: Kubernetes gives every pod such variables when a Service is called tidegate."""
    address = variable.startswith(f"{ENVIRONMENT_PREFIX}PORT") and "://" in text
    if address or variable.startswith(f"{ENVIRONMENT_PREFIX}SERVICE_"):
        raise ConfigError(
            f"the environment variable {variable}={text} looks like a Kubernetes service link, not a setting; "
            "set enableServiceLinks: false in the pod, or call the Service otherwise"
        )


def _convert(setting: Setting, value: object, source: str) -> object:
    """The value in the setting's own type. Raises ConfigError."""
    converted = _typed(setting.kind, value)
    if converted is None or not _in_range(setting, converted):
        shown = "not acceptable" if setting.secret else f"{_plain(value)!r}"
        raise ConfigError(f"{setting.name} is {shown} (from {source}); allowed: {setting.allowed}")
    return converted


def _plain(value: object) -> object:
    return str(value) if isinstance(value, _Text) else value


def _typed(kind: type, value: object) -> object | None:
    """``value`` as ``kind``; None if it is no such thing. Only what came as text is parsed."""
    if kind in {int, float}:
        return _number(kind, value)
    if kind is list:
        if isinstance(value, _Text):
            return [part.strip() for part in value.split(",") if part.strip()]
        return list(value) if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value) else None
    if kind is Path:
        return Path(value).expanduser() if isinstance(value, str | Path) and str(value) else None
    return str(value) if isinstance(value, str) else None


def _number(kind: type, value: object) -> int | float | None:
    if isinstance(value, _Text):
        try:
            value = kind(str(value))
        except ValueError:
            return None
    if type(value) is int and kind is int:
        return value
    if type(value) in {int, float} and kind is float:
        assert isinstance(value, int | float)
        return float(value) if abs(value) <= sys.float_info.max else None  # neither NaN nor infinite
    return None


def _in_range(setting: Setting, value: object) -> bool:
    if isinstance(value, int | float):
        return not (setting.ge is not None and value < setting.ge) and not (
            setting.le is not None and value > setting.le
        )
    return not setting.choices or value in setting.choices


def _check_relations(settings: Settings, sources: Mapping[str, str]) -> None:
    """Settings that are fine each, but not together. Raises ConfigError."""

    def less(smaller: str, larger: str, reason: str) -> None:
        low, high = getattr(settings, smaller), getattr(settings, larger)
        if not low < high:
            raise ConfigError(
                f"{larger} is {high:g} (from {sources[larger]}), but must be more than {smaller}, which is {low:g} "
                f"(from {sources[smaller]}): {reason}"
            )

    less("heartbeat_interval_s", "idle_timeout_s", "a client that sends its heartbeats in time must not be cut")
    if settings.drain_lead_s:
        less("drain_lead_s", "drain_grace_s", "what is left of the grace is for closing connections")
    _check_shared(settings, sources)
    _check_front(settings, sources)
    if not settings.node_name.isprintable():
        raise ConfigError(f"node_name (from {sources['node_name']}) has characters that are not printable")


def _check_shared(settings: Settings, sources: Mapping[str, str]) -> None:
    """What needs a store that several nodes share, and ports for them. Raises ConfigError."""
    if settings.store == "embedded":
        for name, alone in (("processes", 1), ("roles", "both")):
            value = getattr(settings, name)
            if value != alone:
                raise ConfigError(
                    f"{name} is {value} (from {sources[name]}), but the data directory of the embedded store can be "
                    f"owned by one process only, which does everything (store is embedded, from {sources['store']}); "
                    f"allowed: {alone}, or store = cassandra, which nodes share"
                )
        if settings.history_file:
            raise ConfigError(
                f"history_file is given (from {sources['history_file']}), but a node that is alone with its embedded "
                f"store has no epochs to record (store is embedded, from {sources['store']}); "
                "allowed: no history_file, or store = cassandra"
            )
    _check_peers(settings, sources)
    first, last = settings.process_port, settings.process_port + settings.processes - 1
    if first and settings.processes > 1 and (last > PORT_MAX or first <= settings.port <= last):
        raise ConfigError(
            f"process_port is {first} (from {sources['process_port']}), so that {settings.processes} processes would "
            f"take the ports {first} to {last}; allowed: ports up to {PORT_MAX} that do not include port, which is "
            f"{settings.port} (from {sources['port']}), or 0"
        )


def _check_peers(settings: Settings, sources: Mapping[str, str]) -> None:
    """What nodes need to reach each other directly. Raises ConfigError."""
    size = len(settings.cluster_secret)
    if 0 < size < CLUSTER_SECRET_CHARACTERS_MIN:
        raise ConfigError(
            f"cluster_secret (from {sources['cluster_secret']}) has {size} characters; allowed: at least "
            f"{CLUSTER_SECRET_CHARACTERS_MIN}, the same on all nodes (make one with: openssl rand -base64 48)"
        )
    try:
        if settings.redis_url:
            parse_redis_url(settings.redis_url)
    except UrlError as error:
        raise ConfigError(f"{error} (from {sources['redis_url']})") from None
    try:
        _, port = parse_advertised(settings.advertise) if settings.advertise else ("", 0)
    except ValueError as error:
        raise ConfigError(
            f"advertise is {settings.advertise!r} (from {sources['advertise']}): {error}; "
            "allowed: HOST or HOST:PORT, such as 10.0.0.7, node7.internal:8481 or [2001:db8::7]:8481"
        ) from None
    if port and (settings.processes > 1 or port == settings.port):
        taken = f"{settings.processes} processes cannot share" if settings.processes > 1 else "clients are served on"
        raise ConfigError(
            f"advertise is {settings.advertise!r} (from {sources['advertise']}), but its port is one that {taken}; "
            "allowed: another port for a single process, or a HOST only, for which the system chooses ports"
        )


def _check_front(settings: Settings, sources: Mapping[str, str]) -> None:
    """What stands between clients and the node. Raises ConfigError."""
    for network in settings.proxy_protocol_from:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ConfigError(
                f"proxy_protocol_from has {network!r} (from {sources['proxy_protocol_from']}): {error}; "
                "allowed: networks such as 10.0.0.0/8 or 2001:db8::/32, and single addresses"
            ) from None
    for origin in settings.allowed_origins:
        if origin != "null" and _ORIGIN.fullmatch(origin) is None:
            raise ConfigError(
                f"allowed_origins has {origin!r} (from {sources['allowed_origins']}), which no browser sends; "
                "allowed: scheme, host in lower case and port if there is one, such as https://chat.example, "
                "each in full and without a path; or null"
            )
    if settings.tls_key and not settings.tls_cert:
        raise ConfigError(
            f"tls_key is given (from {sources['tls_key']}), but tls_cert is not; "
            "allowed: both, or a tls_cert that contains the key too, or neither (no TLS)"
        )
