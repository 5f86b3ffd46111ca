"""Addresses as people and programs read them."""


def http_url(host: str, port: int, *, tls: bool = False) -> str:
    """``http://HOST:PORT``, or ``https://``; an IPv6 address in brackets."""
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
