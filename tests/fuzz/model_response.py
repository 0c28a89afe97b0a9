"""Properties of the instrumentation of client libraries, for any response of a server that is called.

The application's call is never disturbed, and its span is written.
"""

from __future__ import annotations

import json
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from llamatel.llama.client import client_call
from llamatel.llama.client.client_call import Call
from llamatel.tracing.client_spans import ClientSpans
from llamatel.tracing.http_call import HttpCall
from llamatel.tracing.message_content import Wanted
from tests.fuzz.target import Broken, Target

_exporter, _provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
_provider.add_span_processor(SimpleSpanProcessor(_exporter))
_spans = ClientSpans(_provider.get_tracer("fuzz"), content=Wanted(on_spans=True))

_TIMINGS = {"prompt_n": 5, "prompt_ms": 1.5, "predicted_n": 2, "predicted_ms": 2.5, "cache_n": 3}
_USAGE = {"prompt_tokens": 8, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
_TOOL = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}
_DOCUMENTS: tuple[dict[str, Any], ...] = (
    {"choices": [{"index": 0, "message": {"content": "a", "tool_calls": [_TOOL]}, "finish_reason": "stop"}],
     "model": "m", "id": "x", "system_fingerprint": "b1-x", "usage": _USAGE, "timings": _TIMINGS},
    {"choices": [{"index": 0, "delta": {"content": "a", "reasoning_content": "b"}}]},
    {"content": "a", "stop": True, "stop_type": "limit", "id_slot": 1, "truncated": False, "timings": _TIMINGS},
    {"type": "message", "content": [{"type": "text", "text": "a"}], "stop_reason": "end_turn",
     "usage": {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 3}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "response.completed", "response": {"output": [{"content": [{"text": "a"}]}], "usage": _USAGE}},
    {"error": {"code": 400, "message": "no", "type": "invalid_request_error"}},
)  # fmt: skip


def check(data: bytes) -> bool:
    """Give ``data`` to a call as its response, whole and streamed; True if tokens or an error were found."""
    found = False
    client_call.listen(_spans)
    try:
        for status, kind in ((200, "application/json"), (200, "text/event-stream"), (500, "application/json")):
            call = Call("chat", "127.0.0.1", 8080, stream=kind.startswith("text"), body={"model": "m"})
            call.start()
            followed = HttpCall(call, retried=False)
            followed.response(status, "llama.cpp", kind)
            followed.data(data[: len(data) // 2])
            followed.data(data[len(data) // 2 :])
            followed.finish_body()
            spans = [span for span in _exporter.get_finished_spans() if span.kind is SpanKind.CLIENT]
            _exporter.clear()
            if call.ended_at is None or len(spans) != 1:
                raise Broken("a call without a span")
            found |= bool(call.answer)
    finally:
        client_call.listen(None)
    return found


def _corpus() -> list[bytes]:
    stream = b"".join(b"data: " + json.dumps(document).encode() + b"\n\n" for document in _DOCUMENTS)
    return [*(json.dumps(document, indent=1).encode() for document in _DOCUMENTS), stream + b"data: [DONE]\n\n"]


TARGETS = (Target("model_response", check, _corpus),)
