"""Semantic convention names for a Completion's fields (semantic-conventions-genai, docs/gen-ai).

Shared by spans and collectors; imports nothing of OpenTelemetry.
"""

from __future__ import annotations

from llamatel.records import Completion, GroupedCall, Outcome

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""Schema of our instrumentation scope. The GenAI conventions have no schema yet."""

PROVIDER = "llama.cpp"
"""``gen_ai.provider.name``; the conventions have no value for llama.cpp and allow custom ones."""

# llama.cpp's error texts, by a substring (tools/server/server-context.cpp, the callers of send_error), and ours
# (llama/server/supervisor.py, llama/log/reader.py).
_ERROR_TYPES = (
    ("exceeds the available context size", "exceed_context_size_error"),
    ("larger than the max context size", "exceed_context_size_error"),
    ("exceed context window", "exceed_context_size_error"),  # llama-cpp-python's (llama_cpp/llama.py)
    ("exceed batch size", "input_too_large"),
    ("llama_decode returned", "compute_error"),
    ("too large to process", "input_too_large"),
    ("Compute error", "compute_error"),
    ("the server ended", "server_exited"),
    ("the server was stopped", "server_exited"),
    ("the server's process was replaced", "server_exited"),
)


def operation(completion: Completion) -> str:
    """``gen_ai.operation.name``: chat and plain completion look the same in the log, so both are ``generate_content``.

    A request that completed without figures for prefill or decode was an embedding, unless the server is known to
    rerank or to have a decision model.
    """
    if completion.call is not None:
        return completion.call.operation
    if isinstance(completion, GroupedCall):
        return completion.operation
    if completion.outcome is Outcome.OK and completion.prefill_s is None and completion.decode_s is None:
        return "embeddings"
    return "generate_content"


def error_type(completion: Completion) -> str | None:
    """``error.type``, of few values; None for a request that completed or was cancelled by its client."""
    if completion.outcome is Outcome.CONTEXT_FULL:
        return "context_full"
    if completion.outcome is not Outcome.ERROR:
        return None
    text = completion.error or ""
    unknown = completion.call.error_type if completion.call is not None else None
    return next((name for part, name in _ERROR_TYPES if part in text), unknown or "_OTHER")
