"""Records of other programs that carry llama.cpp's line in a field: JSON, and key=value pairs (logfmt).

The field with the line is known for the usual programs, else found by its content: llama.cpp's own line start. The
same record names the line's source (pod, container, unit, ...) and the time of writing.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import NamedTuple

from llamatel.llama.log.log_line import starts_like_llama_cpp
from llamatel.llama.log.wrapper_time import parse_time

_MESSAGE_KEYS = (
    "log", "message", "msg", "line", "body", "text", "short_message", "full_message", "textpayload", "raw", "original",
    "content", "event", "payload", "data", "output", "stderr", "stdout", "logentry", "logmessage",
)  # fmt: skip
_TIME_KEYS = (
    "source_realtime_timestamp", "realtime_timestamp", "time", "timestamp", "ts", "date", "datetime", "t", "created",
    "asctime", "event_time", "timeunixnano", "tsns", "timegenerated", "timegenerated [utc]", "observedtimeunixnano",
    "observed_timestamp",
)  # fmt: skip
_POD = ("pod", "pod_name", "podname", "k8s_pod_name", "task_name")
_CONTAINER = ("container", "container_name", "containername", "k8s_container_name", "compose_service")
_SERVICE = ("service", "service_name", "unit", "systemd_unit", "systemd_user_unit", "app", "appname", "app_name",
            "app_kubernetes_io_name")  # fmt: skip
_FURTHER = (
    "namespace", "namespace_name", "pod_namespace", "k8s_namespace_name", "container_id", "containerid",
    "syslog_identifier", "identifier", "instance", "job", "host", "hostname", "host_name", "node_name", "nodename",
    "filename", "log_file_path", "log_file_name", "computer", "tag", "model_id", "backend_id",
)  # fmt: skip
_NAMED = frozenset((*_POD, *_CONTAINER, *_SERVICE, *_FURTHER))
_PROCESS = frozenset(("pid", "process_pid", "procid", "process_id", "processid"))
_BASE64 = re.compile(r"[A-Za-z0-9+/]{24,65536}={0,2}")
_PARTIAL = frozenset(("logtag", "p", "partial_message", "container_partial_message", "partial"))
_DECODER = json.JSONDecoder(strict=False)
"""Some programs leave tabs as they are."""
_MOST_NODES = 200
_DEEPEST = 8
_DOCKER_PIECE = 1 << 14
_LONGEST_NAME = 256
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|([0-7]{3})|(.))", re.DOTALL)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "e": "\x1b", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0"}
_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_SINGLE = r"'((?:[^'\\]|\\.)*)'"
_PAIR = re.compile(rf"""([A-Za-z_@][\w.@/-]{{0,63}})"?\s?(?:=>?)\s?(?:{_QUOTED}|{_SINGLE}|([^\s"']*))""", re.DOTALL)
_ENTRY = re.compile(
    rf"""([A-Za-z_@][\w.@/-]{{0,63}})["']?\s{{0,4}}(?:=>|:)\s{{0,4}}(?:{_QUOTED}|{_SINGLE}|([^\s"',}}]*))""", re.DOTALL
)
_PAIRS = re.compile(r"""[\w"]\s?=>?\s?["']""")
_ADDRESS_IN_NAME = re.compile(r".*:\d{2,5}$")


class Carried(NamedTuple):
    """The metadata of one line of llama.cpp in another program's record."""

    text: str
    origin: str = ""
    """What identifies this source in the stream: pod, container, unit, ...; empty where unknown."""
    name: str | None = None
    """The pod's, container's or compose service's name, where there is one."""
    process: str | None = None
    wall: float | None = None
    partial: bool = False
    """Whether the line continues in the next record."""
    layers: int = 0
    """Wrappers that were removed."""


def unescape(text: str) -> str:
    """The content of a quoted value: JSON's, Go's and C's escapes."""
    return _ESCAPE.sub(_unescaped, text) if "\\" in text else text


def _unescaped(found: re.Match[str]) -> str:
    byte, unit, octal, char = found.groups()
    if char is not None:
        return _SIMPLE.get(char, char)
    return chr(int(byte or unit, 16)) if octal is None else chr(int(octal, 8) & 0xFF)


def from_json(text: str, inner: Callable[[str], bool]) -> Carried | None:
    """The line in a JSON object at the start of ``text``; None if there is none, or it has no text.

    ``inner`` decides whether a value is such a record itself, or has a prefix before llama.cpp's line.
    """
    try:
        document, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or text[end:].strip(" \t\r\n,]"):  # it may be the last of an array
        return None
    return from_fields(document, inner)


def pairs(text: str) -> dict[str, object]:
    """The key=value pairs of a logfmt line, or of fluent-bit's ``"key"=>"value"``; values without their quotes."""
    return {} if _PAIRS.search(text) is None else _all_pairs(_PAIR, text)


def entries(text: str) -> dict[str, object]:
    """The entries of a map as Python, JavaScript and Ruby print it; values without their quotes."""
    return _all_pairs(_ENTRY, text)


def _all_pairs(form: re.Pattern[str], text: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for match in form.finditer(text):
        key, double, single, bare = match.groups()
        quoted = double if double is not None else single
        found.setdefault(key, bare if quoted is None else unescape(quoted))
        if len(found) == _MOST_NODES:
            break
    return found


def is_message_key(key: str) -> bool:
    """Whether a field or column of this name usually holds a log's message."""
    return _normal(key) in _MESSAGE_KEYS


def label_set(text: str) -> Carried:
    """The line's source, from Loki's ``{app="x", pod="y"}``."""
    labels = pairs(text)
    carried = _described(labels, "")
    return carried if carried.origin else carried._replace(origin=text)


def from_fields(document: Mapping[str, object], inner: Callable[[str], bool]) -> Carried | None:
    """The line among a record's fields; None where no field holds text."""
    if "msg" in document and ("type" in document or "function" in document) and _is_own(document):
        return None
    text = _message(document, inner)
    return None if text is None else _described(document, text)


def _is_own(document: Mapping[str, object]) -> bool:
    """llama-server's ``--log-jsonl``, or the JSON of builds before 2025 and their forks."""
    return document.get("type") == "log" or {"tid", "function"} <= document.keys()


def _normal(key: str) -> str:
    return key.lower().lstrip("_@").replace(".", "_").replace("-", "_").replace("/", "_")


def _walk(document: Mapping[str, object], path: str = "", depth: int = 0) -> Iterator[tuple[str, str, object]]:
    """Path, key and value of everything except objects; breadth first within an object."""
    deeper: list[tuple[str, Mapping[str, object]]] = []
    for key, value in document.items():
        name = _normal(str(key)[:_LONGEST_NAME])
        if isinstance(value, dict):
            deeper.append((f"{path}{name}_", value))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            deeper.append((f"{path}{name}_", value[0]))
        else:
            yield f"{path}{name}", name, value
    if depth < _DEEPEST:
        for name, value in deeper:
            yield from _walk(value, name, depth + 1)


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
        return bytes(value).decode("utf-8", "replace")  # journald's way to write what is not printable
    return None


def _message(document: Mapping[str, object], inner: Callable[[str], bool]) -> str | None:
    usual: list[tuple[int, str]] = []
    others: list[str] = []
    for number, (_, key, value) in enumerate(_walk(document)):
        if number == _MOST_NODES:
            break
        text = _text(value)
        if text is None:
            continue
        if key in _MESSAGE_KEYS:
            usual.append((_MESSAGE_KEYS.index(key), text))
        elif len(text) > 20:
            others.append(text)
    known = [text for _, text in sorted(usual, key=itemgetter(0))]
    for text in (*known, *others):
        if starts_like_llama_cpp(text):
            return text
    for text in (*known, *others):
        if inner(text):
            return text
    for text in (*known, *others):
        if _BASE64.fullmatch(text) is not None and (decoded := _from_base64(text)) is not None:
            return decoded
    return known[0] if known else None


def _from_base64(text: str) -> str | None:
    """llama.cpp's line from what Kinesis, Pub/Sub and others encode."""
    try:
        decoded = base64.b64decode(text).decode()
    except ValueError:
        return None
    return decoded if starts_like_llama_cpp(decoded) else None


def _described(document: Mapping[str, object], text: str) -> Carried:
    names: dict[str, str] = {}
    times: dict[int, float] = {}
    process = None
    partial = False
    for number, (path, key, value) in enumerate(_walk(document)):
        if number == _MOST_NODES:
            break
        for label in (path, key):
            if label in _NAMED and isinstance(value, (str, int)) and value not in ("", True, False):
                names.setdefault(label, str(value)[:_LONGEST_NAME])
        if key in _PROCESS or path in _PROCESS:
            process = process or str(value)[:_LONGEST_NAME]
        elif key in _TIME_KEYS and _TIME_KEYS.index(key) not in times:
            if (at := parse_time(value)) is not None:
                times[_TIME_KEYS.index(key)] = at
        elif key in _PARTIAL and str(value).lower() in ("p", "true"):
            partial = True
        elif key == "id" and isinstance(value, str) and _ADDRESS_IN_NAME.match(value[:_LONGEST_NAME]):
            names["model_id"] = value[:_LONGEST_NAME]  # LocalAI: the model's name and its backend's address
    if not names and isinstance(labels := document.get("stream"), dict) and labels:
        names["stream"] = str(labels)[:_LONGEST_NAME]  # Loki's
    if not partial and document.keys() >= {"log", "stream", "time"} and isinstance(document["log"], str):
        # Docker's json-file: a line of more than 16 KiB continues in the next record.
        partial = not document["log"].endswith("\n") and len(document["log"]) >= _DOCKER_PIECE // 4
    name = next((names[key] for key in (*_POD, *_CONTAINER) if key in names), None)
    return Carried(
        text.rstrip("\r\n"),
        "/".join(f"{value}" for key, value in sorted(names.items())),
        name,
        process,
        times[min(times)] if times else None,
        partial,
    )
