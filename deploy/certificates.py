"""A self-signed certificate for servers that are started for trials and tests, in the forms that these servers read."""

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12

VALID_DAYS = 30
"""How long a certificate made here is good for, days."""

STORE_PASSWORD = "tidegate"
"""Opens the key store; Java insists on one, and it protects nothing that is worth it."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Where the forms of one certificate lie.

    Attributes:
        certificate_path: the certificate, PEM; it is also what clients have to trust.
        key_path: its private key, PEM.
        chain_path: both in one file, PEM, as HAProxy reads it.
        store_path: both as PKCS #12, as Java reads it; opened by STORE_PASSWORD.
    """

    certificate_path: Path
    key_path: Path
    chain_path: Path
    store_path: Path

    def client_context(self) -> ssl.SSLContext:
        """What a client needs to trust this certificate and no other."""
        return ssl.create_default_context(cafile=str(self.certificate_path))


def make_certificate(directory: Path, addresses: Sequence[str]) -> Certificate:
    """Make a certificate for "localhost" and these IP addresses, or use the one that ``directory`` has already."""
    made = Certificate(*(directory / name for name in ("server.crt", "server.key", "server.pem", "server.p12")))
    if made.certificate_path.exists():
        return made
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(key, addresses)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    encryption = serialization.BestAvailableEncryption(STORE_PASSWORD.encode())
    made.store_path.write_bytes(pkcs12.serialize_key_and_certificates(b"server", key, certificate, None, encryption))
    made.key_path.touch(mode=0o600)
    made.key_path.write_bytes(secret)
    made.chain_path.touch(mode=0o600)
    made.chain_path.write_bytes(public + secret)
    # Last: where it is, all the others are.
    made.certificate_path.write_bytes(public)
    return made


def _signed(key: ec.EllipticCurvePrivateKey, addresses: Sequence[str]) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tidegate test server")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    names = [
        x509.DNSName("localhost"),
        *(x509.IPAddress(ipaddress.ip_address(one)) for one in dict.fromkeys(addresses)),
    ]
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        # Yesterday: tests also run under clocks that step.
        .not_valid_before(now - day)
        .not_valid_after(now + VALID_DAYS * day)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        # It signs itself, so that clients can trust it without another one.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
