"""Identifies the program at an address: llama.cpp, by what only llama.cpp returns, or another known program.

Only requests that load no model and keep none awake are sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from llamatel.errors import HttpError, ServerUnreachable
from llamatel.inputs.address import Address
from llamatel.inputs.documents import InvalidDocument, text
from llamatel.inputs.http import HttpClient, Response
from llamatel.llama.http.props import ServerProps, parse_props
from llamatel.llama.http.server_client import ServerClient

_OWN_PROPS = frozenset({"build_info", "total_slots", "default_generation_settings"})
_TITLE = re.compile(rb"<title[^>]{0,200}>([^<]{1,200})", re.IGNORECASE)
_PROBE_S = 2.0
_SMALL = 1 << 20
_LONGEST_NAME = 80


class NotLlamaCpp(ServerUnreachable):
    """Another program than llama.cpp responds. ``program`` is its name."""

    def __init__(self, url: str, program: Program, status: int) -> None:
        super().__init__(f"{url} is {program.name}, not llama.cpp{program.hint}", status=status)
        self.program = program


class NotIdentified(ServerUnreachable):
    """The response may be a proxy's in front of llama.cpp, or another program's. ``looks``: what it looks like."""

    def __init__(self, url: str, response: Response) -> None:
        super().__init__(f"{url}/health answered {response.status}", status=response.status)
        self.looks = _looks(response)


@dataclass(frozen=True, slots=True)
class Program:
    """The program that responds instead of llama.cpp."""

    name: str
    hint: str = ""
    """The remedy, after a colon."""


OLLAMA = Program("Ollama", ": give it Ollama's log, attach --log FILE, or the address of a server that it runs")
LLAMA_SWAP = Program("llama-swap", ": attach --llama-swap URL observes the servers that it runs")
_OWN_METRICS = ", which has its own metrics"
_VLLM = Program("vLLM", _OWN_METRICS)
_TGI = Program("Text Generation Inference", _OWN_METRICS)
_KOBOLDCPP = Program("KoboldCpp", ", which has none of llama.cpp's metrics")
_GRAFANA = Program("Grafana", ": give the address of a llama.cpp server")
_MLX = Program("an MLX server (mlx_lm)")
_LM_STUDIO = Program("LM Studio", ", which has none of llama.cpp's endpoints: use its log, attach --log FILE")
_OPEN_WEBUI = Program("Open WebUI", ": give the address of the server that it uses")
_LOCALAI = Program("LocalAI", ": give it LocalAI's log, attach --log FILE")
_LITELLM = Program("LiteLLM", ": give the address of a llama.cpp server")
_TEI = Program("Text Embeddings Inference", _OWN_METRICS)
_TRITON = Program("Triton Inference Server", _OWN_METRICS)
_PROMETHEUS = Program("Prometheus", ": give the address of a llama.cpp server")
_LLAMATEL = Program("another llamatel", ": give the address of the server that it observes")
_WEB_PAGE = Program("a web page")
_UNKNOWN = Program("a program that llamatel does not know")
_OWNERS = {
    "vllm": _VLLM, "sglang": Program("SGLang", _OWN_METRICS), "koboldcpp": _KOBOLDCPP, "llama-swap": LLAMA_SWAP,
    "library": OLLAMA, "organization_owner": _LM_STUDIO, "me": Program("llama-cpp-python's server"),
    "user": Program("text-generation-webui", ": give the address of the llama-server that it runs"),
    "tabbyapi": Program("TabbyAPI"), "lmdeploy": Program("LMDeploy"),
}  # fmt: skip
"""Programs by ``owned_by`` in ``/v1/models``, where llama.cpp has "llamacpp"."""
_SERIES = {
    b"vllm:": _VLLM, b"sglang:": _OWNERS["sglang"], b"tgi_": _TGI, b"te_": _TEI, b"litellm_": _LITELLM,
    b"localai_": _LOCALAI, b"prometheus_build_info": _PROMETHEUS,
}  # fmt: skip
"""Programs by the start of a name in ``/metrics``."""
_SIGNS = (
    (b'{"detail":"Not Found"}', "a Python web application: FastAPI"),
    (b"Cannot GET ", "a Node.js web application: Express"),
    (b"404 page not found", "a Go program"),
    (b"Whitelabel Error Page", "a Java web application: Spring"),
)
"""Kinds of programs by the text of their response to an unknown path."""
_TITLES = {
    "localai": _LOCALAI,
    "text generation web ui": _OWNERS["user"],
    "jan": Program("Jan", ": give the address of the llama-server that it runs"),
}
"""Programs by the start of their page's title."""


def identify(client: ServerClient) -> ServerProps:
    """The properties of a ready llama.cpp, empty where they are not available.

    Raises ServerUnreachable: with status 503 while the model loads, 401 where the key is wrong; NotLlamaCpp.
    """
    address = client.address
    if "/upstream/" in f"{address.prefix}/" and _is_llama_swap(address):
        raise NotLlamaCpp(client.base_url, LLAMA_SWAP, 200)  # a request to that path would load the model
    health = _health(client)
    if health.status == 503:
        raise ServerUnreachable(f"{client.base_url}/health answered 503", status=503)
    signed = health.headers.get("Server") == "llama.cpp"
    if health.status != 200 and not signed:
        if b"plain HTTP request was sent to HTTPS" in health.data[:1024]:  # nginx
            raise ServerUnreachable(f"{client.base_url} expects TLS: give it as https://")
        if health.status < 500 and ((program := _name(client)) is not _UNKNOWN or 300 <= health.status < 400):
            raise NotLlamaCpp(client.base_url, _redirecting(program, health), health.status)
        raise NotIdentified(client.base_url, health)
    try:
        props = client.get("/props")
    except ServerUnreachable:
        if signed:
            return ServerProps()
        raise
    document = _document(props)
    if props.status == 200 and (document.keys() & _OWN_PROPS or document.get("role") == "router"):
        # KoboldCpp has such a document, too.
        if not signed and (owner := _owner(_probe(client.http)("/v1/models"))) is not None:
            raise NotLlamaCpp(client.base_url, owner, 200)
        return parse_props(document)
    if props.status in (401, 503) and (signed or _is_error_of_llama(document)):
        raise ServerUnreachable(f"{client.base_url}/props answered {props.status}", status=props.status)
    if signed or _has_own_series(client):
        return ServerProps()
    raise NotLlamaCpp(client.base_url, _name(client), 200)


def _health(client: ServerClient) -> Response:
    try:
        return client.get("/health")
    except ServerUnreachable as error:
        if error.status is None and not error.busy and _speaks_tls(client.address):
            raise ServerUnreachable(f"{client.base_url} expects TLS: give it as https://") from None
        raise


def _speaks_tls(address: Address) -> bool:
    """Whether a port that does not speak plain HTTP answers a TLS handshake."""
    if address.scheme != "http":
        return False
    try:
        HttpClient(Address("https", address.host, address.port)).request("/health", total_s=_PROBE_S, largest=_SMALL)
    except HttpError as error:
        return error.kind == "tls" and "certificate" in str(error).partition("(")[0]
    return True


def _redirecting(program: Program, response: Response) -> Program:
    """An unknown program, with the address that it redirects to, without query and user."""
    try:
        target = urlsplit(response.headers.get("Location") or "")
        shown = f"{target.scheme}://{target.hostname}" if target.hostname else ""
        shown += f":{target.port}" if target.port else ""
    except ValueError:
        return program
    shown = f"{shown}{target.path}"[:_LONGEST_NAME]
    if program is not _UNKNOWN or not shown or not shown.isprintable():
        return program
    return replace(program, hint=f": it redirects to {shown}")


def _looks(response: Response) -> str:
    """What kind of program such a response is from; empty where nothing shows."""
    body = response.data[:4096]
    for sign, kind in _SIGNS:
        if sign in body:
            return kind
    server = (response.headers.get("Server") or "")[:_LONGEST_NAME]
    return server if server.isprintable() and not server.startswith("BaseHTTP/") else ""  # any Python script's


def _document(response: Response) -> Mapping[str, Any]:
    try:
        document = response.json()
    except InvalidDocument:
        return {}
    return document if isinstance(document, dict) else {}


def _is_error_of_llama(document: Mapping[str, Any]) -> bool:
    error = document.get("error")
    return isinstance(error, dict) and error.get("type") in ("authentication_error", "unavailable_error")


def _has_own_series(client: ServerClient) -> bool:
    """Whether its ``/metrics`` are llama.cpp's, of a build without the other endpoints."""
    try:
        return bool(client.counters())
    except ServerUnreachable as error:
        return error.status == 501  # "This server does not support metrics endpoint."


def _is_llama_swap(address: Address) -> bool:
    """Whether llama-swap responds at the root of an address."""
    return _matches(_probe(HttpClient(Address(address.scheme, address.host, address.port))), "/running", _swap)


def _name(client: ServerClient) -> Program:
    """The program's name, from responses that are unique to it."""
    get = _probe(client.http)
    for path, is_it, program in _FINGERPRINTS:
        if _matches(get, path, is_it):
            return program
    if (known := _owner(get("/v1/models")) or _by_series(get("/metrics"))) is not None:
        return known
    if (owner := _owned_by(get("/v1/models"))) is not None and owner != "llamacpp" and owner.isprintable():
        return Program(f"a server of models owned by {owner[:_LONGEST_NAME]!r}")
    front = get("/")
    if front is not None and front.status == 200 and b"<html" in front.data[:4096].lower():
        title = _TITLE.search(front.data[: 1 << 16])
        shown = title.group(1).decode(errors="replace").strip()[:_LONGEST_NAME] if title is not None else ""
        for start, program in _TITLES.items():
            if re.match(rf"{start}\b", shown, re.IGNORECASE):
                return program
        return Program(f"a web page ({shown!r})") if shown.isprintable() and shown else _WEB_PAGE
    return _UNKNOWN


def _probe(http: HttpClient) -> Callable[[str], Response | None]:
    """Caches one request per path; None where it fails."""
    seen: dict[str, Response | None] = {}

    def get(path: str) -> Response | None:
        if path not in seen:
            try:
                seen[path] = http.request(path, total_s=_PROBE_S, largest=_SMALL)
            except HttpError:
                seen[path] = None
        return seen[path]

    return get


def _matches(get: Callable[[str], Response | None], path: str, is_it: Callable[[Response], bool]) -> bool:
    response = get(path)
    return response is not None and is_it(response)


def _swap(response: Response) -> bool:
    return response.status == 200 and isinstance(_document(response).get("running"), list)


def _ollama(response: Response) -> bool:
    return response.status == 200 and response.data.strip() == b"Ollama is running"


def _webui(response: Response) -> bool:
    return b"Open WebUI" in response.data[: 1 << 16]


def _owner(models: Response | None) -> Program | None:
    """The program with such a list of models; None if it may be llama.cpp."""
    owner = _owned_by(models)
    return None if owner is None else _OWNERS.get(owner.lower())


def _owned_by(models: Response | None) -> str | None:
    entries = None if models is None else _document(models).get("data")
    first = entries[0] if isinstance(entries, list) and entries else None
    return text(first.get("owned_by")) if isinstance(first, dict) else None


def _mlx(response: Response) -> bool:
    entries = _document(response).get("data")
    first = entries[0] if isinstance(entries, list) and entries else None
    python = (response.headers.get("Server") or "").startswith("BaseHTTP/")
    return python and isinstance(first, dict) and first.keys() == {"id", "object", "created"}


def _tgi(response: Response) -> bool:
    return _document(response).get("router") == "text-generation-router"


def _koboldcpp(response: Response) -> bool:
    return _document(response).get("result") == "KoboldCpp"


def _grafana(response: Response) -> bool:
    return _document(response).keys() >= {"database", "version"}


def _tei(response: Response) -> bool:
    return _document(response).keys() >= {"model_type", "max_batch_tokens"}


def _triton(response: Response) -> bool:
    return _document(response).get("name") == "triton"


def _localai(response: Response) -> bool:
    return isinstance(_document(response).get("backends"), list)


def _prometheus(response: Response) -> bool:
    return response.data.startswith(b"Prometheus Server is ")


def _litellm(response: Response) -> bool:
    return response.data.strip() == b'"I\'m alive!"'


def _by_series(metrics: Response | None) -> Program | None:
    """The program with such series."""
    if metrics is None or metrics.status != 200:
        return None
    for line in metrics.data[: 1 << 16].splitlines():
        for start, program in _SERIES.items():
            if line.startswith(start):
                return program
    return None


def _lm_studio(response: Response) -> bool:
    return b"Unexpected endpoint or method" in response.data[:1024]


def _llamatel(response: Response) -> bool:
    return response.status == 200 and b"llamatel" in response.data[: 1 << 16] and b"\nllamacpp:" not in response.data


_FINGERPRINTS: tuple[tuple[str, Callable[[Response], bool], Program], ...] = (
    ("/", _ollama, OLLAMA),
    ("/", _webui, _OPEN_WEBUI),
    ("/", _lm_studio, _LM_STUDIO),
    ("/running", _swap, LLAMA_SWAP),
    ("/info", _tgi, _TGI),
    ("/api/extra/version", _koboldcpp, _KOBOLDCPP),
    ("/api/health", _grafana, _GRAFANA),
    ("/v1/models", _mlx, _MLX),
    ("/metrics", _llamatel, _LLAMATEL),
    ("/info", _tei, _TEI),
    ("/v2", _triton, _TRITON),
    ("/system", _localai, _LOCALAI),
    ("/-/healthy", _prometheus, _PROMETHEUS),
    ("/health/liveliness", _litellm, _LITELLM),
)
