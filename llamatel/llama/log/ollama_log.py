"""Parses Ollama's own lines between those of its llama-servers: starts of children, access lines.

Source: ollama v0.30.0 to v0.33.0-rc2 (2026), llm/llama_server.go, server/sched.go, server/routes.go; gin 1.10
``defaultLogFormatter``. Pure functions on text. Nothing here is opened or connected to: a log can be forged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llamatel.llama.log.wrapper_time import find_time

_RECORD = re.compile(
    r"time=(\S{10,40}) level=[A-Z+\d]{1,12} source=[\w.-]{1,64}\.go:\d{1,6} "
    r"msg=(?:\"((?:[^\"\\]|\\.){0,1024})\"|(\S{1,1024}))"
)
_COMMAND = re.compile(r' cmd="((?:[^"\\]|\\.){0,16384})"')
_ADDRESS = re.compile(r"(\d{1,5}) --host 127\.0\.0\.1 ")
_CONTEXT = re.compile(r"(\d{1,10}) -np (\d{1,4})(?: |$)")
_LONGEST_PATH = 4096
_STARTED = re.compile(r"llama-server started in (\d{1,7}\.\d{1,4}) seconds$")
_LISTENING = re.compile(r"Listening on \S{1,255} \(version (\S{1,64})\)$")
_MOST_LOADED = re.compile(r"[ \[]OLLAMA_MAX_LOADED_MODELS:(\d{1,4})[ \]]")
_LONGEST_CONFIG = 8192
_COUNT = re.compile(r" count=(\d{1,4})$")
_EVICTING = (
    "llama-server model predicted to exceed available memory, evicting",
    "evicting all other loaded models for OOM retry",
    "llama-server load failed; evicting all other models and retrying once",
    "max runners achieved, unloading one to make room",  # with OLLAMA_DEBUG only
)
_ACCESS = re.compile(
    r"\[GIN\] (\d{4}/\d\d/\d\d - \d\d:\d\d:\d\d) \| {0,3}(\d{3}) \| {0,16}([\d.a-zµμ]{1,32}) \| {0,40}"
    r"([\w.:%-]{1,64}) \| {0,3}([A-Z]{3,8}) {1,8}\"((?:[^\"\\]|\\.){1,2048})\""
)
_AMOUNT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(h|ms|µs|μs|us|ns|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "μs": 1e-6, "us": 1e-6, "ns": 1e-9}
GENERATING = frozenset(
    (
        "/api/generate", "/api/chat", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
        "/v1/audio/transcriptions",
    )
)  # fmt: skip
EMBEDDING = frozenset(("/api/embed", "/api/embeddings", "/v1/embeddings"))


@dataclass(frozen=True, slots=True)
class ChildStart:
    """Ollama is about to start a llama-server."""

    model_path: str
    port: int
    context: int | None
    """Tokens of all slots together (``-c``)."""
    slots: int | None


@dataclass(frozen=True, slots=True)
class ChildReady:
    """The child that loaded last is ready."""

    loading_s: float


@dataclass(frozen=True, slots=True)
class AccessLine:
    """One HTTP request with a response."""

    path: str
    """Without its query."""
    method: str
    status: int
    duration_s: float
    client: str

    @property
    def infers(self) -> bool:
        """Whether such a request can reach a model."""
        return self.method == "POST" and (self.path in GENERATING or self.path in EMBEDDING)


@dataclass(frozen=True, slots=True)
class OllamaStart:
    """Ollama itself has started: no earlier child is left."""

    version: str


@dataclass(frozen=True, slots=True)
class Eviction:
    """Ollama unloads another model to make room."""


@dataclass(frozen=True, slots=True)
class OllamaConfig:
    """Ollama's settings, at its start."""

    most_loaded: int
    """OLLAMA_MAX_LOADED_MODELS; 0 for the default."""


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """A model was loaded; with the number of loaded models."""

    count: int


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """The child that was loading could not be started."""


OllamaEvent = ChildStart | ChildReady | AccessLine | OllamaStart | OllamaConfig | Eviction | LoadedModels | LoadFailure


def parse_ollama(text: str) -> OllamaEvent | None:
    """What one line of Ollama's own reports; None for any other line."""
    if text.startswith("[GIN] "):
        return _access(text)
    if not text.startswith("time="):
        return None
    found = _RECORD.match(text)
    if found is None:
        return None
    message = found.group(2) or found.group(3) or ""
    if message == "starting llama-server":
        return _start(text[found.end() :])
    if message in _EVICTING:
        return Eviction()
    if message == "loaded runners" and (loaded := _COUNT.match(text, found.end())) is not None:
        return LoadedModels(int(loaded.group(1)))
    if message == "server config":
        config = _MOST_LOADED.search(text, found.end(), _LONGEST_CONFIG)
        return None if config is None else OllamaConfig(int(config.group(1)))
    if message == "Load failed":
        return LoadFailure()
    if (started := _STARTED.match(message)) is not None:
        return ChildReady(float(started.group(1)))
    if (listening := _LISTENING.match(message)) is not None:
        return OllamaStart(listening.group(1))
    return None


def written_at(text: str) -> float | None:
    """Unix time of a record that has it with its zone; None for any other line."""
    found = _RECORD.match(text) if text.startswith("time=") else None
    return None if found is None else find_time(found.group(1))


def parse_duration(text: str) -> float | None:
    """Seconds of a duration as Go prints it (``1m2.5s``, ``118.038686ms``)."""
    seconds, end = 0.0, 0
    for found in _AMOUNT.finditer(text):
        if found.start() != end:
            return None
        seconds, end = seconds + float(found.group(1)) * _UNITS[found.group(2)], found.end()
    return seconds if end == len(text) and end else None


def _start(rest: str) -> ChildStart | None:
    command = _COMMAND.match(rest)
    if command is None:
        return None
    words = command.group(1).replace('\\"', '"').replace("\\\\", "\\")
    # Arguments are not quoted: a path may contain spaces, so it ends at Ollama's next flag.
    model, named, rest = words.partition(" --model ")[2].partition(" --port ")
    address = _ADDRESS.match(rest)
    if not model or not named or address is None or not 0 < int(address.group(1)) < 1 << 16:
        return None
    sizes = _CONTEXT.match(rest.partition(" -c ")[2])
    return ChildStart(
        model[:_LONGEST_PATH],
        int(address.group(1)),
        int(sizes.group(1)) if sizes is not None else None,
        int(sizes.group(2)) if sizes is not None else None,
    )


def _access(text: str) -> AccessLine | None:
    found = _ACCESS.match(text)
    if found is None:
        return None
    _, status, duration, client, method, path = found.groups()
    seconds = parse_duration(duration)
    return None if seconds is None else AccessLine(path.partition("?")[0], method, int(status), seconds, client)
