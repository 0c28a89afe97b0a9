"""A certificate for an address, signed by its own key."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.parts import MissingPart


def make_certificate(
    folder: Path, name: str = "server", *, expired: bool = False, address: str = "127.0.0.1"
) -> tuple[Path, Path]:
    """Return the PEM files of the certificate and of its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise MissingPart("openssl", "sudo apt-get install openssl")
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", cert, "-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{address}"],
        check=True, capture_output=True,
    )  # fmt: skip
    if expired:
        request = subprocess.run(
            [openssl, "x509", "-x509toreq", "-copy_extensions", "copy", "-in", cert, "-signkey", key],
            check=True,
            capture_output=True,
        ).stdout
        subprocess.run(
            [openssl, "x509", "-req", "-signkey", key, "-days", "-1", "-copy_extensions", "copy", "-out", cert],
            input=request, check=True, capture_output=True,
        )  # fmt: skip
    return cert, key
