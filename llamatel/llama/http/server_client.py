"""The HTTP requests that llamatel sends to a llama.cpp server.

``/metrics``, ``/props`` and ``/health`` neither wake a sleeping server nor keep one awake; ``/slots`` does both.
"""

from __future__ import annotations

import copy
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from llamatel.errors import HttpError, ServerUnreachable
from llamatel.inputs.address import Address
from llamatel.inputs.http import HttpClient, Response
from llamatel.inputs.rotated_files import RotatedFiles
from llamatel.llama.http.props import ModelCard, ServerProps, parse_model_card, parse_props
from llamatel.llama.http.slots_endpoint import parse_slots
from llamatel.snapshots import SlotState

_SAMPLE = re.compile(
    rb"^llamacpp:([A-Za-z0-9_]{1,100})(?:\{([^}\n]{0,400})\})? ([-+0-9.eE]{1,40})(?: [0-9]{1,20})?[ \r]*$", re.MULTILINE
)
_POSITION = re.compile(rb'(?:^|,)position="(\d{1,3})"')
_MOST_VALUES = 256
_LARGEST_VALUE = 2.0**62
"""Far above any counter."""
_MODEL_PAUSE_S = 0.02
"""Pause between two requests to a router's model. The end of one may let the router unload the model, whose process
waits until it is killed, ten seconds, if another request arrives in the next milliseconds."""
_ADDITIVE = ("requests_processing", "requests_deferred")
"""Gauges that may be added up over label sets, as counters are."""


def parse_counters(text: bytes) -> dict[str, float]:
    """llama.cpp's ``/metrics`` text: values by name without the ``llamacpp:`` prefix.

    Series of one name with several label sets, such as a proxy's, are added up where that makes sense; draft positions
    stay separate: ``spec_decode_num_accepted_tokens_per_pos_total{position="0"}``. Source:
    tools/server/server-task.cpp, ``server_task_result_metrics``. Lines that are no such sample are ignored: the
    exposition is broken in some builds. So are impossible values, such as NaN.
    """
    values: dict[str, float] = {}
    repeated: set[str] = set()
    for match in _SAMPLE.finditer(text):
        try:
            value = float(match.group(3))
        except ValueError:  # characters of a number, but not a number
            continue
        if not abs(value) < _LARGEST_VALUE:
            continue
        name = match.group(1).decode()
        is_additive = name.endswith("_total") or name in _ADDITIVE
        if position := _POSITION.search(match.group(2) or b""):
            name += f'{{position="{int(position.group(1))}"}}'
        if name in values and match.group(2) is not None:
            if is_additive:
                values[name] += value
            else:
                repeated.add(name)
        elif name in values or len(values) < _MOST_VALUES:
            values[name] = value
    return {name: value for name, value in values.items() if name not in repeated}


def is_counter(name: str) -> bool:
    """Whether a value of ``parse_counters`` is a counter."""
    return name.partition("{")[0].endswith("_total")


def base_url(address: str | None, port: int | None) -> str:
    """The address for clients on this machine of a server that listens on ``address``."""
    host = {None: "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, str(address))  # noqa: S104 - recognised, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True, slots=True)
class Scrape:
    """One response of ``/metrics``."""

    values: Mapping[str, float]
    process: str | None = field(default=None)
    """Identifies the server's process by its start time, on its machine's own clock: not Unix time, although the
    header's name suggests it. Unchanged by sleep."""


class ServerClient:
    """A small client of one server, or of one of a router's models. Thread-safe."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | RotatedFiles[str] | None = None,
        headers: Mapping[str, str] | RotatedFiles[Mapping[str, str]] | None = None,
        tls: ssl.SSLContext | RotatedFiles[ssl.SSLContext] | None = None,
        timeout_s: float = 2.0,
    ) -> None:
        """Raises UsageError for a key that cannot be sent.

        ``headers`` are sent along; ``tls`` is used for https instead of what the system trusts.
        """
        self.http = HttpClient(base_url, api_key=api_key, headers=headers, tls=tls, kept=2)
        self.base_url = self.http.base_url
        self._timeout_s = timeout_s
        self._query = ""
        self._pause_s = self._answered_at = 0.0
        self._scraped: tuple[bytes, Scrape | None] = (b"", None)
        """The last response of ``/metrics``, and what it was parsed to."""

    def of_model(self, name: str) -> ServerClient:
        """A client for one of a router's models, over the same connections; it never makes the router load it."""
        client = copy.copy(self)
        client._query = f"?model={quote(name, safe='')}&autoload=false"
        client._pause_s = _MODEL_PAUSE_S
        return client

    @property
    def address(self) -> Address:
        """The server's address."""
        return self.http.address

    def get(self, path: str, timeout_s: float | None = None) -> Response:
        """A response of any status. Raises ServerUnreachable without a response."""
        if self._pause_s and (pause_s := self._answered_at + self._pause_s - time.monotonic()) > 0:
            time.sleep(pause_s)
        try:
            return self.http.request(path + self._query, total_s=timeout_s or self._timeout_s)
        except HttpError as error:
            raise ServerUnreachable(f"{self.base_url}{path} does not answer: {error}", busy=error.busy) from error
        finally:
            self._answered_at = time.monotonic()

    def health(self, timeout_s: float | None = None) -> int:
        """The status of ``/health``, which needs no key: 200 once the model is loaded, 503 while it loads.

        Raises ServerUnreachable where no server answers.
        """
        return self.get("/health", timeout_s).status

    def healthy(self, timeout_s: float | None = None) -> bool:
        """True once the model is loaded; False while it loads or no server listens."""
        try:
            return self.health(timeout_s) == 200
        except ServerUnreachable:
            return False

    def counters(self, timeout_s: float | None = None) -> Mapping[str, float]:
        """llama.cpp's counters and gauges; raises ServerUnreachable where they are not available."""
        return self.scrape(timeout_s).values

    def scrape(self, timeout_s: float | None = None) -> Scrape:
        """``counters``, with the identity of the process."""
        answer = self._answer("/metrics", "without --metrics", timeout_s)
        process, (text, last) = answer.headers.get("Process-Start-Time-Unix"), self._scraped
        if last is not None and last.process == process and text == answer.data:
            return last  # an idle server's
        scrape = Scrape(parse_counters(answer.data), process)
        self._scraped = answer.data, scrape
        return scrape

    def slots(self, timeout_s: float | None = None) -> tuple[SlotState, ...]:
        """The slots now; raises ServerUnreachable where they are not available. Wakes a sleeping server."""
        response = self._answer("/slots", "with --no-slots", timeout_s)
        try:
            slots = parse_slots(response.json())
        except ValueError:
            slots = None
        if slots is None:
            raise ServerUnreachable(f"{self.base_url}/slots answered with something else", status=response.status)
        return slots

    def props(self, timeout_s: float | None = None) -> ServerProps:
        """The properties of ``/props``; all None where it does not answer."""
        return parse_props(self._document("/props", timeout_s))

    def describe(self) -> ServerProps:
        """``props``; raises ServerUnreachable where it does not answer, as the next request would wait as long."""
        return parse_props(_object(self.get("/props")))

    def build(self, timeout_s: float | None = None) -> str | None:
        """llama.cpp's build as ``/props`` reports it; None where it does not answer."""
        return self.props(timeout_s).build

    def _answer(self, path: str, missing: str, timeout_s: float | None) -> Response:
        """A response with status 200. ``missing``: how a server without this path was started."""
        response = self.get(path, timeout_s)
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
        """The model's name as clients see it; None where unknown, or a router has several."""
        return self.model_card(timeout_s).name

    def model_card(self, timeout_s: float | None = None) -> ModelCard:
        """The only model's entry in ``/v1/models``; all None where it does not answer."""
        models = self._document("/v1/models", timeout_s).get("data")
        return parse_model_card(models[0] if isinstance(models, list) and len(models) == 1 else None)

    def router_models(self, timeout_s: float | None = None) -> list[Mapping[str, object]]:
        """A router's models and their states (``/models``); raises ServerUnreachable. Loads none of them."""
        try:
            document = self._answer("/models", "without its models' list", timeout_s).json()
        except ValueError:
            document = None
        models = document.get("data") if isinstance(document, dict) else None
        return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []

    def _document(self, path: str, timeout_s: float | None) -> dict[str, object]:
        """A JSON object; empty where it is not available."""
        try:
            return _object(self.get(path, timeout_s))
        except ServerUnreachable:
            return {}

    def close(self) -> None:
        """Close the connections."""
        self.http.close()


def _object(response: Response) -> dict[str, object]:
    """The JSON object of a response; empty where it has none."""
    try:
        document = response.json() if response.status == 200 else {}
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def shown_tasks(client: ServerClient) -> dict[int, int] | None:
    """By the slots of a server the task that each runs or ran last, -1 for none; None where that is not known."""
    try:
        return {slot.id: -1 if slot.task is None else slot.task for slot in client.slots()}
    except ServerUnreachable:
        return None
