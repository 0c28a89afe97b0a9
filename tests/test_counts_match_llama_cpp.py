"""Accuracy of telemetry: llama.cpp under a mixed load, against its own counters, its responses, its clients.

One load per backend, with telemetry as in an application; the tests compare different sources.
"""

from __future__ import annotations

import math
import statistics
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import llamatel
from llamatel.llama.http.server_client import parse_counters
from llamatel.llama.server.manager import ServerManager
from llamatel.records import Completion, Outcome
from llamatel.snapshots import ServerSnapshot
from tests.load import Answer, Clients, endless, mixed_load
from tests.parts import OtlpSink, SinkSpan, wait_until
from tests.servers import BACKENDS, choose_backend, without_settings

SLOTS = 6
CONTEXT = 8192
AT_ONCE = 48
# As many HTTP threads as clients: llama.cpp itself does not see requests that wait for a thread. One compute thread:
# two that wait for each other are very slow on a busy machine.
FLAGS = ("--threads-http", "80", "-t", "1")
COUNTERS = {
    "input_computed": "prompt_tokens_total",
    "input_cached": "prompt_tokens_cached_total",
    "output": "tokens_predicted_total",
}
ROUNDING_S = 0.0000056
"""llama.cpp prints milliseconds with two digits; Unix time as a float is exact to a quarter of a microsecond."""

Key = tuple[int | None, int | None, int | None, str, str]


@dataclass(frozen=True)
class Sides:
    """The same load from every source."""

    completed: list[Answer]
    """Of the first part of the load, in which every request ends well."""
    answers: list[Answer]
    """Of all of it."""
    records: list[Completion]
    traces: dict[int | None, str | None]
    """Trace ids by task."""
    own_after_completed: dict[str, float]
    """llama.cpp's counters after the first part."""
    own: dict[str, float]
    samples: dict[str, list[tuple[dict[str, str], float]]]
    """What Prometheus gets, by name."""
    sink: OtlpSink
    state: ServerSnapshot
    delivered: bool

    def metric(self, name: str, **labels: str) -> float:
        """The one sample with this name and these labels, or the sum of several."""
        found = [value for has, value in self.samples[name] if labels.items() <= has.items()]
        assert found, f"{name}{labels}"
        return math.fsum(found)

    def ok(self) -> list[Completion]:
        return [record for record in self.records if record.outcome is Outcome.OK]


def _own_counters(server: ServerManager) -> dict[str, float]:
    with urllib.request.urlopen(f"{server.base_url}/metrics", timeout=30) as answer:
        return parse_counters(answer.read())


def _scrape(url: str | None) -> dict[str, list[tuple[dict[str, str], float]]]:
    assert url is not None
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


@pytest.fixture(scope="module", params=BACKENDS)
def sides(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[Sides]:
    records: list[Completion] = []
    traces: dict[int | None, str | None] = {}

    def keep(record: Completion, trace_id: str | None) -> None:
        records.append(record)
        traces[record.task] = trace_id

    with pytest.MonkeyPatch.context() as patch, OtlpSink() as sink:
        without_settings(patch)
        running = llamatel.init(
            otlp_endpoint=sink.endpoint, otlp_protocol="http/protobuf", metrics_addr="127.0.0.1:0", sinks=[keep]
        )
        try:
            with ServerManager(backend=choose_backend(request)) as server:
                server.start_server(
                    tiny_model, port=0, n_parallel=SLOTS, ctx_size=SLOTS * CONTEXT, extra_args=FLAGS
                ).wait_until_ready(60)

                def settle(expected: int) -> None:
                    # llama.cpp answers before it logs.
                    wait_until(lambda: len(records) >= expected, 60, f"{expected} records, not {len(records)}")
                    assert running.observer.flush()

                mixed = mixed_load(300, context=CONTEXT)
                well = [request for request in mixed if request.expect == "ok"][:120]
                # llama.cpp notices a disconnect without a stream only after a second without responses: these last.
                silent = [endless(f"Wait {n}", context=CONTEXT, stream=False, hang_up=1.0) for n in range(SLOTS)]
                with Clients(server.base_url) as clients:
                    completed = clients.send_all(well, at_once=AT_ONCE)
                    settle(sum(answer.request.choices for answer in completed))
                    own_after_completed = _own_counters(server)
                    answers = completed + clients.send_all(mixed, at_once=AT_ONCE)
                    answers += clients.send_all(silent, at_once=SLOTS)
                    settle(sum(answer.request.choices for answer in answers if answer.request.expect != "refused"))
                samples = _scrape(running.pipeline.metrics_url)
                own = _own_counters(server)
                state = server.snapshot()
                assert state is not None
        finally:
            delivered = llamatel.shutdown()
        yield Sides(completed, answers, records, traces, own_after_completed, own, samples, sink, state, delivered)


def _key(computed: int | None, cached: int | None, generated: int | None, prefill_ms: float, decode_ms: float) -> Key:
    return computed, cached, generated, f"{prefill_ms:.2f}", f"{decode_ms:.2f}"


def _record_key(record: Completion) -> Key:
    assert record.prefill_s is not None
    assert record.decode_s is not None
    return _key(
        record.prompt_computed, record.prompt_cached, record.generated, record.prefill_s * 1e3, record.decode_s * 1e3
    )


def _timings_key(timings: dict[str, Any]) -> Key:
    return _key(
        timings["prompt_n"], timings["cache_n"], timings["predicted_n"], timings["prompt_ms"], timings["predicted_ms"]
    )


def _pairs(sides: Sides) -> list[tuple[Answer, dict[str, Any], Completion]]:
    """Answers with the record of each of their choices."""
    by_key: dict[Key, list[Completion]] = {}
    for record in sides.ok():
        by_key.setdefault(_record_key(record), []).append(record)
    pairs = []
    # If two are equal to a hundredth of a millisecond, the one that finished first was answered first.
    for answer in sorted(sides.answers, key=lambda answer: answer.ended_at):
        for timings in answer.timings:
            matching = by_key.get(_timings_key(timings))
            assert matching, f"no record matches {timings}"
            pairs.append((answer, timings, matching.pop(0)))
    return pairs


def test_truth_load(sides: Sides) -> None:
    assert len(sides.answers) > 400
    assert {(answer.request.expect, answer.outcome) for answer in sides.answers} == {
        ("ok", "ok"), ("cancelled", "cancelled"), ("error", "error"), ("refused", "refused"),
    }  # fmt: skip
    repeated = [record for record in sides.ok() if (record.prompt_cached or 0) > 10]
    assert len(repeated) > 20, "the cache was hardly used"
    waited = [record for record in sides.records if (record.queue_s or 0) > 0.01]
    assert len(waited) > 100, "no request waited"


def test_truth_token_totals(sides: Sides) -> None:
    latest = sides.sink.latest()["llamacpp.tokens"]
    pushed = {point.attributes["type"]: point.value for point in latest.points}
    for kind, counter in COUNTERS.items():
        assert sides.metric("llamacpp_tokens_total", type=kind) == sides.own[counter] > 0
        assert pushed[kind] == sides.own[counter]


def test_truth_record_sums(sides: Sides) -> None:
    records = sides.records[: sum(answer.request.choices for answer in sides.completed)]
    assert {record.outcome for record in records} == {Outcome.OK}
    # All choices of a request share its prompt, and llama.cpp counts it once.
    own = [record for record in records if not record.is_child]
    assert len(own) == len(sides.completed)
    assert sides.own_after_completed["prompt_tokens_total"] == sum(record.prompt_computed or 0 for record in own)
    assert sides.own_after_completed["prompt_tokens_cached_total"] == sum(record.prompt_cached or 0 for record in own)
    assert sides.own_after_completed["tokens_predicted_total"] == sum(record.generated or 0 for record in records)


def test_truth_request_counts(sides: Sides) -> None:
    did = Counter(answer.outcome for answer in sides.answers if answer.outcome != "refused")
    assert Counter(record.outcome.value for record in sides.records if not record.is_child) == did
    for outcome, number in did.items():
        assert sides.metric("llamacpp_requests_total", outcome=outcome) == number
    assert sides.metric("llamacpp_requests_total") == sum(did.values())
    more_choices = sum(answer.request.choices - 1 for answer in sides.answers)
    assert sum(record.is_child for record in sides.records) == more_choices
    errors = [record.error or "" for record in sides.records if record.outcome is Outcome.ERROR]
    assert all("exceeds the available context size" in error for error in errors)


def test_truth_records_match_responses(sides: Sides) -> None:
    responses = Counter(_timings_key(timings) for answer in sides.answers for timings in answer.timings)
    known = Counter(_record_key(record) for record in sides.ok())
    assert responses - known == Counter()
    # A response that is not streamed has the timings of one of its choices.
    not_in_responses = sum(
        answer.request.choices - 1 for answer in sides.answers if answer.outcome == "ok" and not answer.request.streams
    )
    assert sum((known - responses).values()) == not_in_responses

    pairs = [(timings, record) for answer, timings, record in _pairs(sides) if answer.request.choices == 1]
    assert sum(t["prompt_n"] for t, _ in pairs) == sum(record.prompt_computed or 0 for _, record in pairs)
    assert sum(t["cache_n"] for t, _ in pairs) == sum(record.prompt_cached or 0 for _, record in pairs)
    assert sum(t["predicted_n"] for t, _ in pairs) == sum(record.generated or 0 for _, record in pairs)


def test_truth_span_times(sides: Sides) -> None:
    traces = sides.sink.traces()
    assert len(traces) == len(sides.records)
    checked = 0
    for _, timings, record in _pairs(sides):
        trace_id = sides.traces[record.task]
        assert trace_id is not None
        spans = {span.name: span for span in traces[trace_id]}
        assert abs(spans["prefill"].seconds - timings["prompt_ms"] / 1e3) <= ROUNDING_S
        assert abs(spans["decode"].seconds - timings["predicted_ms"] / 1e3) <= ROUNDING_S
        root = _root(traces[trace_id])
        assert root.attributes["gen_ai.usage.output_tokens"] == timings["predicted_n"]
        assert root.attributes["gen_ai.usage.input_tokens"] == timings["prompt_n"] + timings["cache_n"]
        assert root.attributes["gen_ai.usage.cache_read.input_tokens"] == timings["cache_n"]
        checked += 1
    assert checked > 250


def test_truth_span_structure(sides: Sides) -> None:
    assert sides.delivered
    traces = sides.sink.traces()
    for record in sides.records:
        trace_id = sides.traces[record.task]
        assert trace_id is not None
        spans = traces[trace_id]
        root = _root(spans)
        assert root.kind == "SERVER"
        assert root.status == ("ERROR" if record.outcome is Outcome.ERROR else "UNSET")
        children = sorted((span for span in spans if span is not root), key=lambda span: span.start_ns)
        wanted = ["queue"] if (record.queue_s or 0) > 0.0001 else []
        wanted += ["prefill", "decode"] if record.outcome is Outcome.OK else []
        assert [span.name for span in children] == wanted
        for child in children:
            assert child.parent_id == root.span_id
            assert root.start_ns <= child.start_ns <= child.end_ns <= root.end_ns
        for before, after in pairwise(children):
            assert before.end_ns <= after.start_ns


def _root(spans: Iterable[SinkSpan]) -> SinkSpan:
    [root] = [span for span in spans if not span.parent_id]
    return root


def test_truth_client_times(sides: Sides) -> None:
    late_starts, early_ends, longer = [], [], []
    for answer, timings, record in _pairs(sides):
        # llama.cpp's own times are within its client's, independent of noise.
        assert (timings["prompt_ms"] + timings["predicted_ms"]) / 1e3 <= answer.seconds
        late_starts.append(record.started_at - answer.sent_at)
        early_ends.append(answer.ended_at - record.ended_at)
        if record.queue_s is not None:
            longer.append(record.duration_s - answer.seconds)
    # Two clocks of one machine, one read through a pipe; and the log has a request's end a moment after its client.
    assert min(late_starts) > -0.25
    assert statistics.quantiles(late_starts, n=20)[0] > -0.005
    assert min(early_ends) > -0.25
    assert statistics.quantiles(early_ends, n=20)[0] > -0.02
    # With the queue, which is estimated, the server's side still is the shorter one but for a few.
    assert statistics.quantiles(longer, n=20)[-1] < 0.1 * max(answer.seconds for answer in sides.answers)
    assert statistics.median(longer) < 0.01


HISTOGRAMS: dict[str, tuple[Callable[[Completion], float | None], Callable[[Completion], bool]]] = {
    "gen_ai_server_request_duration_seconds": (lambda r: r.ended_at - r.arrived_at, lambda r: not r.is_child),
    "gen_ai_server_time_to_first_token_seconds": (
        lambda r: None if r.queue_s is None or r.first_token_at is None else r.first_token_at - r.arrived_at,
        lambda r: r.outcome is Outcome.OK and not r.is_child,
    ),
    "gen_ai_server_time_per_output_token_seconds": (
        lambda r: None if not r.decode_s or (r.generated or 0) < 2 else r.decode_s / ((r.generated or 0) - 1),
        lambda r: r.outcome is Outcome.OK,
    ),
    "llamacpp_request_queue_duration_seconds": (lambda r: r.queue_s, lambda r: not r.is_child),
    "llamacpp_request_prefill_duration_seconds": (lambda r: r.prefill_s, lambda r: not r.is_child),
    "llamacpp_request_decode_duration_seconds": (lambda r: r.decode_s, lambda r: r.decode_s is not None),
    "llamacpp_request_input_tokens": (
        lambda r: r.prompt_tokens, lambda r: r.outcome is Outcome.OK and not r.is_child,
    ),
    "llamacpp_request_cached_tokens": (
        lambda r: r.prompt_cached, lambda r: r.outcome is Outcome.OK and not r.is_child,
    ),
    "llamacpp_request_output_tokens": (lambda r: r.generated, lambda r: r.outcome is Outcome.OK),
}  # fmt: skip


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_truth_histograms(sides: Sides, name: str) -> None:
    value, wanted = HISTOGRAMS[name]
    values = [found for record in sides.records if wanted(record) and (found := value(record)) is not None]
    assert len(values) > 200
    assert sides.metric(f"{name}_count") == len(values)
    assert sides.metric(f"{name}_sum") == pytest.approx(math.fsum(values), rel=1e-9)
    for labels, count in sides.samples[f"{name}_bucket"]:
        matching = [other for other, _ in sides.samples[f"{name}_count"] if other.items() <= labels.items()]
        if len(matching) == 1 and len(sides.samples[f"{name}_count"]) == 1:
            bound = float(labels["le"])
            # A sum of floats may fall on the other side of a bound.
            assert sum(v <= bound * (1 - 1e-9) for v in values) <= count <= sum(v <= bound * (1 + 1e-9) for v in values)


def test_truth_no_losses(sides: Sides) -> None:
    assert sides.state.log is not None
    assert sides.state.log.requests_lost == 0
    assert sides.state.log.lines["malformed"] == 0
    assert sides.state.log.understood is True
    assert sides.metric("llamatel_requests_lost_total") == 0
    assert all(value == 0 for _, value in sides.samples.get("llamatel_records_dropped_total", []))
    assert all(value == 1 for _, value in sides.samples["llamatel_collector_success"])
