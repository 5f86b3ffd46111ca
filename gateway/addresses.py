"""Addresses as people and programs read them."""


def http_url(host: str, port: int, *, tls: bool = False) -> str:
    """``http://HOST:PORT``, or ``https://``; an IPv6 address in brackets."""
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def parse_advertised(text: str) -> tuple[str, int]:
    """Host and port of ``HOST`` or ``HOST:PORT``, an IPv6 address in brackets; port 0 if there is none.

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, "0"
    elif not (port.isascii() and port.isdecimal() and 0 < int(port) <= 65_535):
        raise ValueError(f"{port!r} is no port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address has to be in brackets")
    if not host or not host.isprintable() or any(each in host for each in " /[]@"):
        raise ValueError(f"{host!r} is no host")
    return host, int(port)
