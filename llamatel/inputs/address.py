"""Server addresses: ``http(s)://HOST[:PORT][/PREFIX]`` and Unix sockets."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from llamatel.errors import UsageError

DEFAULT_PORTS = {"http": 80, "https": 443}
UNQUOTED = "/%:@!$&'()*+,;=~-._"
"""Characters of a path that are sent without percent-encoding."""
_SHORT = re.compile(r"\w{1,8}://[A-Za-z.-]{0,12}")
"""An address that is too short for a secret."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    scheme: str
    """``http``, ``https`` or ``unix``."""
    host: str
    """Host name or IP address without brackets; of ``unix`` the path of the socket."""
    port: int | None = None
    """None for a Unix socket."""
    prefix: str = ""
    """Prefix of every request's path, such as ``/llama-a``; no slash at its end."""

    @property
    def origin(self) -> str:
        """The URL without the prefix."""
        if self.scheme == "unix":
            return f"unix://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL, normalized: with its port, without a slash at its end."""
        return self.origin + (f":{self.prefix}" if self.scheme == "unix" and self.prefix else self.prefix)

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine: a Unix socket or loopback."""
        return self.scheme == "unix" or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host is loopback, by its name or address; no name is resolved."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def parse_address(url: str, *, private: bool = False) -> Address:
    """The address in ``http(s)://HOST[:PORT][/PREFIX]``, ``unix:///PATH[:/PREFIX]`` or ``HOST:PORT``.

    Raises UsageError; its message never shows a user or password, and of a ``private`` text (a file's) nothing that
    could be one.
    """
    full = url.strip() if "://" in url else f"http://{url.strip()}"
    try:
        parts = urlsplit(full)
        port = parts.port  # raises ValueError where it is none
        userinfo = parts.username is not None or parts.password is not None
    except ValueError:
        raise UsageError(_no_address(full, private=private)) from None
    if userinfo or parts.query or parts.fragment or ":" in parts.path.rpartition("@")[0]:
        raise UsageError("a server's address has no user, password, query or fragment: an API key goes into a file")
    if parts.scheme == "unix":
        path, colon, prefix = full[len("unix://") :].partition(":/")
        if not path.startswith("/") or "\0" in path:
            shown = _shown(full, private=private)
            raise UsageError(f"{shown} is not the address of a Unix socket: write it like unix:///run/llama.sock")
        return Address("unix", path, None, _prefix(colon[1:] + prefix))
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or port == 0 or re.search(r"[\s\0-\x1f\x7f]", full):
        raise UsageError(_no_address(full, private=private))
    return Address(parts.scheme, parts.hostname, port or DEFAULT_PORTS[parts.scheme], _prefix(parts.path))


def _prefix(path: str) -> str:
    return quote(path.rstrip("/"), safe=UNQUOTED)


def _no_address(url: str, *, private: bool) -> str:
    return f"{_shown(url, private=private)} is not a server address: write it like http://127.0.0.1:8080"


def _shown(url: str, *, private: bool) -> str:
    hidden = "@" in url or (private and _SHORT.fullmatch(url) is None)
    return "this" if hidden else f"'{url}'"
