"""Flags for polling servers, which ``attach`` and ``top`` share."""

from __future__ import annotations

import dataclasses
import os
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

from llamatel.errors import UsageError
from llamatel.inputs.credentials import api_key_of, present, read_headers, trust
from llamatel.inputs.rotated_files import RotatedFiles
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
        files = [path for path in (self.ca_file, self.client_cert, self.client_key) if path]
        return Access(
            api_key_of(self.api_key_file) if self.api_key_file else os.environ.get(API_KEY_VARIABLE),
            RotatedFiles([path], partial(read_headers, path)) if (path := self.header_file) else {},
            RotatedFiles(files, self._tls) if files else None,
        )

    def _tls(self) -> ssl.SSLContext:
        context = trust(self.ca_file)
        return present(context, self.client_cert, self.client_key) if self.client_cert else context
