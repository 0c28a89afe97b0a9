"""Connections of the HTTP client: TCP, TLS, Unix sockets and through a proxy; not connected yet."""

from __future__ import annotations

import functools
import socket
import ssl
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

from llamatel.errors import HttpError
from llamatel.inputs.address import DEFAULT_PORTS, Address

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection


def new_connection(address: Address, tls: ssl.SSLContext | None, *, use_proxy: bool) -> HTTPConnection:
    """A connection to ``address``; ``use_proxy``: through the proxy of the environment, if there is one.

    ``tls`` replaces what the system trusts. Raises HttpError for an invalid proxy URL.
    """
    from urllib3.connection import HTTPConnection, HTTPSConnection

    if address.scheme == "unix":
        return _unix_connection(address.host)
    options: dict[str, Any] = {}
    if address.scheme == "https":
        context = tls or _system_tls()
        # urllib3 has its own host name check; here the context decides about it.
        options = {"ssl_context": context, "assert_hostname": None if context.check_hostname else False}
    proxy = getproxies().get(address.scheme) if use_proxy and not proxy_bypass(address.host) else None
    if proxy is not None:
        return _proxied(proxy, address, options)
    kind = HTTPSConnection if options else HTTPConnection
    return kind(address.host, address.port, **options)


@functools.cache
def _system_tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _unix_connection(path: str) -> HTTPConnection:
    from urllib3.connection import HTTPConnection

    class UnixConnection(HTTPConnection):
        def connect(self) -> None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(self.timeout)
                sock.connect(path)
            except BaseException:
                sock.close()
                raise
            self.sock = sock

    return UnixConnection("localhost")


def _proxied(proxy: str, address: Address, tls: dict[str, Any]) -> HTTPConnection:
    """A connection through a proxy: a tunnel for https, absolute URLs for http."""
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.exceptions import LocationParseError
    from urllib3.util import Url, make_headers, parse_url

    try:
        url = parse_url(proxy if "://" in proxy else f"http://{proxy}")
    except LocationParseError:  # it quotes the URL, which may hold a password
        url = Url()
    if url.scheme not in DEFAULT_PORTS or not url.host:
        raise HttpError("the proxy in the environment is not an http:// or https:// address", kind="proxy")
    port = url.port or DEFAULT_PORTS[url.scheme]
    more: dict[str, Any] = {"proxy": url}
    if url.scheme == "https":
        more["proxy_config"] = SimpleNamespace(
            ssl_context=_system_tls(), use_forwarding_for_https=False, assert_hostname=None, assert_fingerprint=None
        )
    headers = make_headers(proxy_basic_auth=url.auth) if url.auth else {}
    kind = HTTPSConnection if tls or url.scheme == "https" else HTTPConnection
    connection = kind(url.host, port, **more, **tls)
    if tls:
        connection.set_tunnel(address.host, address.port, headers, url.scheme)
    return connection
