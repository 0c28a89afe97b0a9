"""Recognises spans of model calls that other instrumentations started."""

from __future__ import annotations

from opentelemetry.trace import Span

_OPERATIONS = frozenset(
    {"chat", "text_completion", "generate_content", "embeddings", "rerank", "completion", "responses"}
)
_KINDS = frozenset({"LLM", "EMBEDDING", "RERANKER"})
_SCOPES = (
    "opentelemetry.instrumentation.openai",
    "opentelemetry.instrumentation.openai_v2",
    "opentelemetry.instrumentation.genai",
    "openinference.instrumentation.openai",
    "openinference.instrumentation.litellm",
)
"""Scopes whose spans are model calls, including those that set attributes only at their end."""

_SCOPES_AND_BELOW = tuple(f"{scope}." for scope in _SCOPES)


def is_model_span(span: Span) -> bool:
    """Whether a recording span is one model call, by the GenAI conventions or OpenInference's.

    Spans of agents, workflows and tools are not.
    """
    if not span.is_recording():
        return False
    attributes = getattr(span, "attributes", None) or {}
    operation = attributes.get("gen_ai.operation.name")
    if operation is not None:
        return operation in _OPERATIONS
    kind = attributes.get("openinference.span.kind")
    if kind is not None:
        return kind in _KINDS
    scope = getattr(getattr(span, "instrumentation_scope", None), "name", None)
    return "llm.request.type" in attributes or (isinstance(scope, str) and f"{scope}.".startswith(_SCOPES_AND_BELOW))
