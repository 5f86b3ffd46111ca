"""Certificates for test servers: one self-signed for a set of addresses, made when it is needed."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

KEY_STORE_PASSWORD = "tidegate"
"""Opens the key store; it protects nothing, but there has to be one."""

VALID_DAYS = 7
"""How long a certificate made here is good for, days."""


def make_key_store(directory: Path, addresses: Sequence[str]) -> Path:
    """Make ``keystore.p12`` (for Java) in ``directory``, and ``ca.pem``, the certificate to trust; return the latter.

    Both are kept when they are there already. Raises subprocess.CalledProcessError.
    """
    store, trusted = directory / "keystore.p12", directory / "ca.pem"
    if trusted.exists():
        return trusted
    names = ",".join(["dns:localhost", *(f"ip:{address}" for address in dict.fromkeys(addresses))])
    access = ["-alias", "node", "-keystore", str(store), "-storepass", KEY_STORE_PASSWORD, "-storetype", "PKCS12"]
    key = ["-keyalg", "EC", "-groupname", "secp256r1", "-validity", str(VALID_DAYS), "-dname", "CN=tidegate test"]
    extensions = ["-ext", f"san={names}", "-ext", "bc=ca:true"]
    _run("keytool", "-genkeypair", *access, *key, *extensions)
    _run("keytool", "-exportcert", "-rfc", *access, "-file", str(trusted))
    return trusted


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)
