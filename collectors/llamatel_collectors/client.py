"""Calls of LlamaCppClient as the GenAI conventions measure clients: time, to the first chunk, per chunk; tokens.

By default under the names that Python's instrumentations use (v1.41 of the conventions); under the newer ones with
``OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental``, as the conventions have it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from llamatel.collectors import Collector, Sample
from llamatel.records import ClientCall, Outcome
from llamatel.tracing.semconv import PROVIDER

_OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"
_LATEST = "gen_ai_latest_experimental"


class ClientCollector(Collector):
    """Histograms and counters of client calls; a figure that a response lacks yields no sample."""

    name = "client"

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._latest = _LATEST in (word.strip() for word in environ.get(_OPT_IN, "").split(","))

    def on_call(self, call: ClientCall) -> Iterator[Sample]:
        """Samples of one call."""
        about: dict[str, str | int] = {"gen_ai.operation.name": call.operation, "gen_ai.provider.name": PROVIDER}
        if call.response_model is not None:
            about["gen_ai.response.model"] = call.response_model
        error = "cancelled" if call.outcome is Outcome.CANCELLED else call.error_type
        outcome = about if error is None else {**about, "error.type": error}
        prefix = self._prefix(call)
        yield Sample(f"{prefix}.duration", call.duration_s, call.server, outcome)
        if call.first_chunk_at is not None:
            yield Sample(f"{prefix}.time_to_first_chunk", call.first_chunk_at - call.started_at, call.server, about)
            for gap in call.chunk_gaps:
                yield Sample(f"{prefix}.time_per_output_chunk", gap, call.server, about)
        yield from self._tokens(call, about)

    def _prefix(self, call: ClientCall) -> str:
        if self._latest and call.generates:
            return "gen_ai.client.inference"
        if self._latest and call.operation == "embeddings":
            return "gen_ai.client.embeddings"
        return "gen_ai.client.operation"

    def _tokens(self, call: ClientCall, about: dict[str, str | int]) -> Iterator[Sample]:
        if self._latest and call.operation == "embeddings":
            if call.input_tokens is not None:
                yield Sample("gen_ai.client.embeddings.operation.input_tokens", call.input_tokens, call.server, about)
            return
        if not self._latest or not call.generates:
            for kind, count in (("input", call.input_tokens), ("output", call.output_tokens)):
                if count is not None:
                    yield Sample("gen_ai.client.token.usage", count, call.server, {**about, "gen_ai.token.type": kind})
            return
        counted = {**about, "gen_ai.token.modality": call.modality}
        for name, count in (
            ("input_tokens", call.input_tokens),
            ("output_tokens", call.output_tokens),
            ("cache_read.input_tokens", call.cached_tokens),
        ):
            if count is not None:
                yield Sample(f"gen_ai.client.inference.usage.{name}", count, call.server, counted)
                if "." not in name:
                    yield Sample(f"gen_ai.client.inference.operation.{name}", count, call.server, about)
