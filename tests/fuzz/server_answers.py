"""Properties of the parsers of other programs' HTTP responses, target files and call reports, for any bytes.

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
from llamatel.llama.watch.llama_swap import parse_running
from llamatel.llama.watch.ollama_models import file_name, parse_loaded, parse_weights
from llamatel.llama.watch.router_models import parse_models
from llamatel.llama.watch.targets import parse_file
from llamatel.telemetry.otlp_transport import _accepted
from llamatel.tracing.call_reports import InvalidCallReport, read
from llamatel.ui.top.live_schema import check_document
from llamatel.ui.top.screen import Choices, plain_lines, screen
from tests.fuzz.target import Broken, Target


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
        report = read(data)
    except (InvalidCallReport, LlamatelError):
        return False
    return bool(report.servers or report.calls or report.open_calls)


def check_ollama(data: bytes) -> bool:
    """Ollama's ``/api/ps`` and ``/api/show``."""
    document = _document(data)
    weights = parse_weights(document)
    if len(weights or "") > 4096 or "/" in file_name(weights or ""):
        raise Broken(f"a file that cannot be: {weights!r}")
    try:
        models = parse_loaded(document)
    except ValueError:
        return weights is not None
    if len(models) > 64 or any(len(name) > 4096 for name in models):
        raise Broken("models without a bound")
    return bool(models)


def check_llama_swap(data: bytes) -> bool:
    """llama-swap's ``/running``."""
    try:
        models = parse_running(_document(data))
    except ValueError:
        return False
    if (
        len(models) > 256
        or any(len(name) > 4096 for name in models)
        or not set(models.values()) <= {"loaded", "loading"}
    ):
        raise Broken(f"models that cannot be: {models}")
    return bool(models)


def check_live_document(data: bytes) -> bool:
    """``/live.json`` of another llamatel, as ``top`` shows it."""
    try:
        document = check_document(_document(data))
    except ValueError:
        return False
    for width, height in ((80, 24), (20, 3)):
        lines = screen(document, Choices(), width, height).plain.split("\n")
        if len(lines) > height or any(not line.isprintable() for line in lines):
            raise Broken(f"not a screen: {lines}")
    if any(not line.isprintable() for text in plain_lines(document) for line in text.split("\n")):
        raise Broken("control characters")
    return True


def check_otlp_response(data: bytes) -> bool:
    """What an OTLP endpoint answers to a batch: partial success."""
    partial = False
    for signal in ("traces", "metrics"):
        sent = _accepted(signal, data)
        if not sent.delivered or sent.rejected < 0 or len(sent.reason) > 300 or not sent.reason.isprintable():
            raise Broken(f"a result that cannot be: {sent}")
        partial |= bool(sent.rejected)
    return partial


_SLOT = {
    "id": 0, "n_ctx": 2048, "speculative": False, "is_processing": True, "id_task": 7, "n_prompt_tokens": 30,
    "n_prompt_tokens_processed": 10, "n_prompt_tokens_cache": 5, "params": {}, "next_token": [{"n_decoded": 15}],
}  # fmt: skip
_MODEL = {"id": "m.gguf", "aliases": ["m"], "meta": {"n_ctx_train": 4096, "n_params": 10**9}}
_CHILD = {**_MODEL, "status": {"value": "loaded", "args": ["--port", "8081", "--ctx-size", "512"], "exit_code": 1}}
_GROUPS = [{"targets": ["127.0.0.1:8080", "http://b:1/x"], "labels": {"env": "prod"}}]
_LOADED = {"models": [{"name": "a:1b", "expires_at": "2026-01-01T00:00:00Z", "details": {"format": "gguf"}}]}
_RUNNING = {"running": [{"model": "a", "state": "ready"}, {"model": "b", "state": "starting"}]}
_METRICS = b'# TYPE x counter\nllamacpp:prompt_tokens_total 7\nllamacpp:x_total{position="0"} 1e3\nllamacpp:y NaN\n'


def _lines(*documents: Any) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(document, indent=1).encode() for document in documents]


def _live() -> list[bytes]:
    """A real document, with a request."""
    from tests.test_live_document import observed_document

    return _lines(observed_document())()


def _reports() -> list[bytes]:
    from llamatel.tracing.call_reports import CallReport, write
    from tests.test_call_reports import OpenCall, call, open_calls

    about = open_calls(1.0, OpenCall())
    return [write(CallReport([("127.0.0.1", 8080)], calls, about)) for calls in ([], [call(1), call(2)])]


def _otlp() -> list[bytes]:
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace

    spans = trace.ExportTracePartialSuccess(rejected_spans=3, error_message="too old")
    points = metrics.ExportMetricsPartialSuccess(rejected_data_points=2**62, error_message="\n\x1b[31mno")
    messages = (
        trace.ExportTraceServiceResponse(partial_success=spans),
        metrics.ExportMetricsServiceResponse(partial_success=points),
        trace.ExportTraceServiceResponse(),
    )
    return [bytes(message.SerializeToString()) for message in messages]


TARGETS = (
    Target("metrics", check_metrics, lambda: [_METRICS, _METRICS * 3]),
    Target("slots", check_slots, _lines([_SLOT], [_SLOT, {**_SLOT, "id": 1, "is_processing": False}])),
    Target(
        "props", check_props, _lines({"build_info": "b1-x", "model_path": "/m", "total_slots": 4, "is_sleeping": True})
    ),
    Target("models", check_models, _lines({"data": [_MODEL]}, {"data": [_CHILD, _MODEL]})),
    Target(
        "targets", check_targets, lambda: [*_lines(_GROUPS)(), b"- targets: [a:1]\n  labels: {x: y}\n", b"a:1\nb:2\n"]
    ),
    Target("call_reports", check_call_reports, _reports),
    Target(
        "ollama_models", check_ollama, _lines(_LOADED, {"modelfile": "# x\nFROM /m/blobs/sha256-65\nPARAMETER a 1"})
    ),
    Target("llama_swap_running", check_llama_swap, _lines(_RUNNING)),
    Target("live_document", check_live_document, _live),
    Target("otlp_response", check_otlp_response, _otlp),
)
