"""An extract of the GenAI conventions' tables: what a client's spans and metrics may have, and of which type.

Source: open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md, gen-ai-metrics.md and
gen-ai-token-metrics.md, read in November 2026. Names that Python's ``opentelemetry-semantic-conventions`` has, too, are
compared with it.
"""

from __future__ import annotations

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

REQUIRED = ("gen_ai.operation.name", "gen_ai.provider.name")
ATTRIBUTES: dict[str, type] = {
    "gen_ai.operation.name": str,
    "gen_ai.provider.name": str,
    "gen_ai.request.model": str,
    "gen_ai.request.max_tokens": int,
    "gen_ai.request.temperature": float,
    "gen_ai.request.top_p": float,
    "gen_ai.request.top_k": int,
    "gen_ai.request.frequency_penalty": float,
    "gen_ai.request.presence_penalty": float,
    "gen_ai.request.stop_sequences": tuple,
    "gen_ai.request.seed": int,
    "gen_ai.request.choice.count": int,
    "gen_ai.request.stream": bool,
    "gen_ai.request.encoding_formats": tuple,
    "gen_ai.embeddings.dimension.count": int,
    "gen_ai.output.type": str,
    "gen_ai.response.id": str,
    "gen_ai.response.model": str,
    "gen_ai.response.finish_reasons": tuple,
    "gen_ai.response.time_to_first_chunk": float,
    "gen_ai.usage.input_tokens": int,
    "gen_ai.usage.output_tokens": int,
    "gen_ai.usage.cache_read.input_tokens": int,
    "gen_ai.system_instructions": str,
    "gen_ai.input.messages": str,
    "gen_ai.output.messages": str,
    "gen_ai.tool.definitions": str,
    "gen_ai.workflow.name": str,
    "server.address": str,
    "server.port": int,
    "error.type": str,
}
OPERATIONS = ("chat", "text_completion", "embeddings", "generate_content", "invoke_workflow")
"""Of those that we use; the conventions have none for reranking and allow one's own."""

METRICS: dict[str, tuple[str, str]] = {
    "gen_ai.client.operation.duration": ("histogram", "s"),
    "gen_ai.client.operation.time_to_first_chunk": ("histogram", "s"),
    "gen_ai.client.operation.time_per_output_chunk": ("histogram", "s"),
    "gen_ai.client.token.usage": ("histogram", "{token}"),
    "gen_ai.client.inference.duration": ("histogram", "s"),
    "gen_ai.client.inference.time_to_first_chunk": ("histogram", "s"),
    "gen_ai.client.inference.time_per_output_chunk": ("histogram", "s"),
    "gen_ai.client.inference.usage.input_tokens": ("counter", "{token}"),
    "gen_ai.client.inference.usage.output_tokens": ("counter", "{token}"),
    "gen_ai.client.inference.usage.cache_read.input_tokens": ("counter", "{token}"),
    "gen_ai.client.inference.operation.input_tokens": ("histogram", "{token}"),
    "gen_ai.client.inference.operation.output_tokens": ("histogram", "{token}"),
}


def shipped(module: object) -> set[str]:
    """The names that Python's package has."""
    return {value for name, value in vars(module).items() if name.startswith("GEN_AI") and isinstance(value, str)}


SHIPPED_ATTRIBUTES = shipped(gen_ai_attributes)
SHIPPED_METRICS = shipped(gen_ai_metrics)
