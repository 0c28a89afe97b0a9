"""Properties of the parsers of llama.cpp's HTTP responses, target files and call reports, for any bytes.

A value or a typed one-line error, possible numbers, bounded lists.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from llamatel.errors import LlamatelError, UsageError
from llamatel.inputs.documents import InvalidDocument, parse_json
from llamatel.llama.http.props import parse_model_card, parse_props
from llamatel.llama.http.server_client import parse_counters
from llamatel.llama.http.slots_endpoint import parse_slots
from llamatel.llama.watch.router_models import parse_models
from llamatel.llama.watch.targets import parse_file
from llamatel.tracing.call_reports import InvalidCallReport, read
from tests.fuzz.target import Broken, Target, mutate_lines


def check_metrics(data: bytes) -> bool:
    """``/metrics``."""
    values = parse_counters(data)
    if len(values) > 512 or any(not abs(value) < 2.0**62 for value in values.values()):
        raise Broken(f"counters that cannot be: {len(values)}")
    return bool(values)


def _document(data: bytes) -> Any:
    try:
        return parse_json(data)
    except InvalidDocument as error:
        if "\n" in str(error):
            raise Broken(f"not one line: {error!r}") from error
        return None


def check_slots(data: bytes) -> bool:
    """``/slots``."""
    slots = parse_slots(_document(data))
    for slot in slots or ():
        for number in (slot.id, slot.context_size, slot.context_tokens, slot.decoded, slot.prompt_cached):
            if number is not None and not 0 <= number < 2**62:
                raise Broken(f"a slot that cannot be: {slot}")
    return bool(slots)


def check_props(data: bytes) -> bool:
    """``/props``."""
    document = _document(data)
    return isinstance(document, dict) and parse_props(document).build is not None


def check_models(data: bytes) -> bool:
    """``/v1/models`` and a router's ``/models``."""
    document = _document(data)
    entries = document.get("data") if isinstance(document, dict) else None
    entries = entries if isinstance(entries, list) else []
    for entry in entries:
        card = parse_model_card(entry)
        if len(card.name or "") > 4096:
            raise Broken("a name without a bound")
    return bool(parse_models([entry for entry in entries if isinstance(entry, dict)]))


def check_targets(data: bytes) -> bool:
    """A file of targets, in each format."""
    found = 0
    for name in ("targets.json", "targets.yml", "targets.txt"):
        try:
            found += len(parse_file(name, data.decode("utf-8", "replace")))
        except UsageError as error:
            if "\n" in str(error):
                raise Broken(f"not one line: {error!r}") from error
    return bool(found)


def check_call_reports(data: bytes) -> bool:
    """A call report."""
    try:
        servers, calls = read(data)
    except (InvalidCallReport, LlamatelError):
        return False
    return bool(servers or calls)


_SLOT = {
    "id": 0, "n_ctx": 2048, "speculative": False, "is_processing": True, "id_task": 7, "n_prompt_tokens": 30,
    "n_prompt_tokens_processed": 10, "n_prompt_tokens_cache": 5, "params": {}, "next_token": [{"n_decoded": 15}],
}  # fmt: skip
_MODEL = {"id": "m.gguf", "aliases": ["m"], "meta": {"n_ctx_train": 4096, "n_params": 10**9}}
_CHILD = {**_MODEL, "status": {"value": "loaded", "args": ["--port", "8081", "--ctx-size", "512"], "exit_code": 1}}
_GROUPS = [{"targets": ["127.0.0.1:8080", "http://b:1/x"], "labels": {"env": "prod"}}]
_CALL = {"servers": [["127.0.0.1", 8080]], "calls": []}
_METRICS = b'# TYPE x counter\nllamacpp:prompt_tokens_total 7\nllamacpp:x_total{position="0"} 1e3\nllamacpp:y NaN\n'


def _lines(*documents: Any) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(document, indent=1).encode() for document in documents]


def _target(name: str, check: Callable[[bytes], bool], corpus: Callable[[], list[bytes]]) -> Target:
    return Target(name, check, corpus, mutate_lines, f"{__name__}:{check.__name__}")


TARGETS = (
    _target("metrics", check_metrics, lambda: [_METRICS, _METRICS * 3]),
    _target("slots", check_slots, _lines([_SLOT], [_SLOT, {**_SLOT, "id": 1, "is_processing": False}])),
    _target(
        "props", check_props, _lines({"build_info": "b1-x", "model_path": "/m", "total_slots": 4, "is_sleeping": True})
    ),
    _target("models", check_models, _lines({"data": [_MODEL]}, {"data": [_CHILD, _MODEL]})),
    _target(
        "targets", check_targets, lambda: [*_lines(_GROUPS)(), b"- targets: [a:1]\n  labels: {x: y}\n", b"a:1\nb:2\n"]
    ),
    _target("call_reports", check_call_reports, _lines(_CALL)),
)
