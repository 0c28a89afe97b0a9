"""Flags for polling servers, which ``attach`` and ``top`` share."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from llamatel.errors import UsageError
from llamatel.inputs.credentials import present, read_api_key, read_headers, trust
from llamatel.llama.server.server_command import API_KEY_VARIABLE
from llamatel.llama.watch.fleet import Access

_C = TypeVar("_C", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--api-key-file", metavar="FILE", help=f"The servers' key.  [default: ${API_KEY_VARIABLE}]"),
    click.option("--ca-file", metavar="FILE", help="Trust these CAs (PEM), not the system's."),
    click.option("--client-cert", metavar="FILE", help="Certificate (PEM) to present to servers."),
    click.option("--client-key", metavar="FILE", help="Its key, if in another file."),
    click.option("--header-file", metavar="FILE", help="Headers to send, 'Name: value' a line."),
)


def access_options(command: _C) -> _C:
    """The flags of ``AccessOptions``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclasses.dataclass(frozen=True, slots=True)
class AccessOptions:
    """The values of ``access_options``, by the flags' names."""

    api_key_file: str | None = None
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    header_file: str | None = None

    def access(self) -> Access:
        """Parse the options. Raises UsageError for a file that cannot be used."""
        if self.client_key and not self.client_cert:
            raise UsageError("--client-key is the key of a certificate: add --client-cert FILE")
        tls = trust(self.ca_file) if self.ca_file or self.client_cert else None
        if tls is not None and self.client_cert:
            tls = present(tls, self.client_cert, self.client_key)
        return Access(
            read_api_key(self.api_key_file) if self.api_key_file else os.environ.get(API_KEY_VARIABLE),
            read_headers(self.header_file) if self.header_file else {},
            tls,
        )
