"""Credentials for a server: API key, headers, certificates; from files, as other users can see arguments."""

from __future__ import annotations

import os
import re
import ssl
import stat

from llamatel.errors import UsageError
from llamatel.inputs.rotated_files import RotatedFiles
from llamatel.inputs.text_file import read_text, shown_path, user_path

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def check_api_key(key: str) -> None:
    """Raise UsageError, which does not show the key, for one that fits into no header."""
    if not key.isprintable():
        raise UsageError("the API key contains a line end or another control character")


def read_api_key(path: str | os.PathLike[str]) -> str:
    """The first key of a file with one key a line, ``#`` before a comment, as llama.cpp reads it.

    Raises UsageError, which never shows the file's content.
    """
    lines = read_text(path, "the API key file").split("\n")
    key = next((line for line in lines if line and not line.startswith("#")), None)
    if key is None:
        raise UsageError(f"the API key file {shown_path(path)} contains no key")
    return key


def api_key_of(path: str | os.PathLike[str]) -> RotatedFiles[str]:
    """The key in a file as ``read_api_key`` reads it, also after the file was replaced. Raises UsageError."""

    def read() -> str:
        check_api_key(key := read_api_key(path))
        return key

    return RotatedFiles([path], read)


def read_headers(path: str | os.PathLike[str]) -> dict[str, str]:
    """Headers from a file with one ``Name: value`` per line. Raises UsageError, which never shows its content."""
    headers = {}
    for number, line in enumerate(read_text(path, "the header file").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not _HEADER_NAME.fullmatch(name) or not value.isprintable():
            raise UsageError(
                f"line {number} of the header file {shown_path(path)} is not a header: write it Name: value"
            )
        headers[name] = value
    return headers


def trust(ca_file: str | os.PathLike[str] | None) -> ssl.SSLContext:
    """TLS that trusts the certificates in a PEM file and no others; None: what the system trusts. Raises UsageError."""
    if ca_file is None:
        return ssl.create_default_context()
    pem = read_text(ca_file, "the CA file").encode("ascii", "replace").decode()  # comments may be in any language
    try:
        if "-----BEGIN" not in pem:  # else the system's certificates would be trusted
            raise ValueError
        return ssl.create_default_context(cadata=pem)
    except (OSError, ValueError):
        raise UsageError(f"cannot use the CA file {shown_path(ca_file)}: it contains no certificate") from None


def present(
    context: ssl.SSLContext, certificate: str | os.PathLike[str], key: str | os.PathLike[str] | None
) -> ssl.SSLContext:
    """The context, with a client certificate (PEM); its key may be in the same file. Raises UsageError."""
    files = [user_path(file) for file in (certificate, key) if file is not None]
    try:
        for file in files:
            if not stat.S_ISREG(file.stat().st_mode):  # OpenSSL would wait for the writer of a pipe
                raise UsageError(
                    f"cannot use the client certificate {shown_path(certificate)}: {shown_path(file)} is not a file"
                )
        context.load_cert_chain(files[0], files[1] if len(files) > 1 else None, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        reason = "certificate and key do not fit, or one is missing"
        if not isinstance(error, ssl.SSLError):
            reason = error.strerror or reason
        raise UsageError(f"cannot use the client certificate {shown_path(certificate)}: {reason}") from None
    return context


def _no_password() -> str:
    """Refuse a key with a password: OpenSSL would prompt for it at the terminal."""
    raise UsageError("the key of the client certificate has a password: use one without")


def pin(certificate: str | os.PathLike[str]) -> ssl.SSLContext:
    """TLS for a server whose own certificate is in a PEM file: it is trusted for every host name.

    Raises UsageError.
    """
    context = trust(certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be signed by itself
    return context
