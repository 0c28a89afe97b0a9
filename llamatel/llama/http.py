"""What llamatel asks a llama.cpp server over HTTP, and nothing more.

``/metrics``, ``/props`` and ``/health`` neither wake a sleeping server nor keep one awake; ``/slots`` does both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import urllib3

from llamatel.errors import ServerUnreachable, UsageError
from llamatel.llama.props import ServerProps, parse_props
from llamatel.llama.slots import parse_slots
from llamatel.records import SlotState

_SAMPLE = re.compile(rb"^llamacpp:(\w+)(?:\{[^}]*\})? ([-+0-9.eE]+|NaN|[+-]?Inf)[ \r]*$", re.MULTILINE)
_LABELLED = re.compile(rb"^llamacpp:\w+\{", re.MULTILINE)


def parse_counters(text: bytes) -> dict[str, float]:
    """llama.cpp's ``/metrics`` text: values by name without the ``llamacpp:`` prefix; labelled series are left out.

    Source: tools/server/server-task.cpp, ``server_task_result_metrics``. Lines that are no such sample are passed over:
    the exposition has been broken in some builds.
    """
    values: dict[str, float] = {}
    for match in _SAMPLE.finditer(text):
        if _LABELLED.match(match.group()):
            continue
        try:
            values[match.group(1).decode()] = float(match.group(2))
        except ValueError:  # made of a number's characters and none
            continue
    return values


def base_url(address: str, port: int | None) -> str:
    """Where clients on this machine reach a server that listens on ``address``."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - recognised, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_api_key(key: str) -> None:
    """Raise UsageError, which does not show the key, for one that fits into no header."""
    if not key.isprintable():
        raise UsageError("the API key holds a line end or another control character")


class ServerClient:
    """A small client of one server. Thread-safe."""

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = 2.0) -> None:
        """Raises UsageError for a key that cannot be sent."""
        check_api_key(api_key or "")
        self.base_url = base_url.rstrip("/")
        # llama.cpp compares bytes; http.client sends text as Latin-1.
        self._headers = {"Authorization": f"Bearer {api_key}".encode().decode("latin-1")} if api_key else {}
        self._timeout_s = timeout_s
        self._pool = urllib3.PoolManager(maxsize=2, retries=False)

    def _get(self, path: str, timeout_s: float | None) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(
                "GET", self.base_url + path, headers=self._headers, timeout=timeout_s or self._timeout_s
            )
        except urllib3.exceptions.HTTPError as error:
            # The library's text repeats its pool and a traceback's worth of causes; the first line is enough.
            reason = str(error).splitlines()[0]
            busy = isinstance(error, urllib3.exceptions.ReadTimeoutError)
            raise ServerUnreachable(f"{self.base_url}{path} does not answer: {reason}", busy=busy) from error

    def healthy(self, timeout_s: float | None = None) -> bool:
        """True once the model is loaded; False while it loads or nobody listens."""
        try:
            return self._get("/health", timeout_s).status == 200
        except ServerUnreachable:
            return False

    def counters(self, timeout_s: float | None = None) -> Mapping[str, float]:
        """llama.cpp's counters and gauges; raises ServerUnreachable where they cannot be had."""
        return parse_counters(self._answer("/metrics", "without --metrics", timeout_s).data)

    def slots(self, timeout_s: float | None = None) -> tuple[SlotState, ...]:
        """The slots now; raises ServerUnreachable where they cannot be had. Wakes a sleeping server."""
        response = self._answer("/slots", "with --no-slots", timeout_s)
        try:
            slots = parse_slots(response.json())
        except ValueError:
            slots = None
        if slots is None:
            raise ServerUnreachable(f"{self.base_url}/slots answered with something else", status=response.status)
        return slots

    def props(self, timeout_s: float | None = None) -> ServerProps:
        """What ``/props`` tells; nothing but None where that cannot be had."""
        return parse_props(self._document("/props", timeout_s))

    def build(self, timeout_s: float | None = None) -> str | None:
        """llama.cpp's build as ``/props`` tells it; None where that cannot be had."""
        return self.props(timeout_s).build

    def _answer(self, path: str, missing: str, timeout_s: float | None) -> urllib3.BaseHTTPResponse:
        """An answer of status 200. ``missing``: how a server was started that has no such path."""
        response = self._get(path, timeout_s)
        if response.status != 200:
            hints = {
                401: "the API key is missing or wrong: use --api-key-file",
                501: f"the server was started {missing}",
                503: "the model is still loading",
            }
            hint = hints.get(response.status, "see the server's log")
            raise ServerUnreachable(f"{self.base_url}{path} answered {response.status}: {hint}", status=response.status)
        return response

    def model(self, timeout_s: float | None = None) -> str | None:
        """The model's name as clients see it; None where that cannot be had, or a router has several."""
        models = self._document("/v1/models", timeout_s).get("data")
        if not isinstance(models, list) or len(models) != 1 or not isinstance(models[0], dict):
            return None
        name = models[0].get("id")
        if not isinstance(name, str) or not name:
            return None
        # Without an alias it is the path of the file; that of a model from a hub has slashes, too.
        return name.rpartition("/")[2] if name.endswith(".gguf") else name

    def _document(self, path: str, timeout_s: float | None) -> dict[str, object]:
        """A JSON object; empty where it cannot be had."""
        try:
            response = self._get(path, timeout_s)
            document = response.json() if response.status == 200 else {}
        except (ServerUnreachable, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()
