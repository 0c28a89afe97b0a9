"""Requests: duration by phase, tokens and outcome; and those that were rejected.

A further choice of a request (``n`` > 1) runs as a separate request in llama.cpp, with a copy of its parent's prompt
figures. Only its decoding and the tokens that it generated are counted, not a request.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamatel.collectors import Collector, Sample
from llamatel.records import Completion, Outcome, ServerInfo, ServerKey
from llamatel.snapshots import Snapshot
from llamatel.tracing.semconv import PROVIDER, error_type, operation

_SERVERS = 4096
"""Most servers remembered; for others an outcome's count starts with its first request."""


class RequestsCollector(Collector):
    """Latency and token histograms and the count of requests, from llama.cpp's log."""

    name = "requests"

    def __init__(self) -> None:
        self._seen: set[ServerKey] = set()

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """Rejected requests of each server whose log is read."""
        for state in snapshot.servers:
            if state.log is not None:
                for reason, count in state.log.rejected.items():
                    yield Sample("llamacpp.requests.rejected", count, state.server, {"reason": reason})

    def on_completion(self, completion: Completion) -> Iterator[Sample]:
        """Samples of one request; a figure that the log lacks yields no sample."""
        server, outcome = completion.server, completion.outcome
        done = outcome is Outcome.OK
        gen_ai = {"gen_ai.operation.name": operation(completion), "gen_ai.provider.name": PROVIDER}
        figures: list[tuple[str, float | None]] = [("llamacpp.request.decode.duration", completion.decode_s)]
        if not completion.is_child:
            error = "cancelled" if outcome is Outcome.CANCELLED else error_type(completion)
            with_error = gen_ai if error is None else {**gen_ai, "error.type": error}
            yield Sample("gen_ai.server.request.duration", completion.duration_s, server, with_error)
            if server.key not in self._seen:
                yield from self._zeros(server)
            yield Sample("llamacpp.requests", 1, server, {"outcome": outcome.value})
            figures += [
                ("llamacpp.request.queue.duration", completion.queue_s),
                ("llamacpp.request.outside.duration", completion.outside_s),
                ("llamacpp.request.prefill.duration", completion.prefill_s),
            ]
            if done:
                if (first_s := completion.time_to_first_token_s) is not None:
                    yield Sample("gen_ai.server.time_to_first_token", first_s, server, gen_ai)
                figures += [
                    ("llamacpp.request.input_tokens", completion.prompt_tokens),
                    ("llamacpp.request.cached_tokens", completion.prompt_cached),
                ]
        if done:
            if (token_s := completion.time_per_output_token_s) is not None:
                yield Sample("gen_ai.server.time_per_output_token", token_s, server, gen_ai)
            figures.append(("llamacpp.request.output_tokens", completion.generated))
        for metric, value in figures:
            if value is not None:
                yield Sample(metric, value, server)

    def _zeros(self, server: ServerInfo) -> Iterator[Sample]:
        """Every outcome counts from 0 once a server is known: a rate needs to see the first failure as a change."""
        if len(self._seen) < _SERVERS:
            self._seen.add(server.key)
            for outcome in Outcome:
                yield Sample("llamacpp.requests", 0, server, {"outcome": outcome.value})
