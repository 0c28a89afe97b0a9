"""Samples as OpenTelemetry metrics, and the collectors that make them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.sdk.metrics.export import (
    Metric as SdkMetric,
)

from llamatel.collectors import Sample
from llamatel.metrics import DROP_REASONS, METRICS, Kind, table
from llamatel.records import Access, Outcome, ServerInfo
from llamatel.snapshots import Snapshot
from llamatel.telemetry.instruments import Instruments
from llamatel_collectors.requests import RequestsCollector
from llamatel_collectors.server import ServerCollector
from llamatel_collectors.tokens import TokensCollector
from tests.samples import SERVER, START_TIME, completion, cut_short, samples_of, server_snapshot, snapshot

ABOUT_SERVER = {"server.address": "127.0.0.1", "server.port": 8090, "gen_ai.request.model": "tiny"}
Points = dict[str, list[tuple[dict[str, Any], float]]]


class Measured:
    """Instruments with two readers; tests set the clock and the snapshot."""

    def __init__(self) -> None:
        self.now = 0.0
        self.snapshots_taken = 0
        self.current: Iterable[Sample] = ()
        self.readers = [InMemoryMetricReader(), InMemoryMetricReader()]
        self.provider = MeterProvider(self.readers, shutdown_on_exit=False)
        self.instruments = Instruments(self.provider.get_meter("tests"), METRICS, self._samples, clock=lambda: self.now)

    def _samples(self) -> Iterator[Sample]:
        self.snapshots_taken += 1
        yield from self.current

    def collect(self, reader: int = 0) -> dict[str, SdkMetric]:
        data = self.readers[reader].get_metrics_data()
        if data is None:
            return {}
        return {m.name: m for r in data.resource_metrics for scope in r.scope_metrics for m in scope.metrics}

    def points(self, reader: int = 0) -> Points:
        """Attributes and value (a histogram's sum) of every point, by metric."""
        found: Points = {}
        for name, metric in self.collect(reader).items():
            for point in metric.data.data_points:
                assert isinstance(point, NumberDataPoint | HistogramDataPoint)
                value = point.sum if isinstance(point, HistogramDataPoint) else point.value
                found.setdefault(name, []).append((dict(point.attributes or {}), value))
        return found


@pytest.fixture
def measured() -> Iterator[Measured]:
    measured = Measured()
    yield measured
    measured.provider.shutdown()


def test_instruments_of_the_whole_table(measured: Measured) -> None:
    rows = table()
    observed = []
    for row in METRICS:
        attributes = dict.fromkeys(row.attributes, "x")
        sample = Sample(row.name, 3.0, SERVER, attributes)
        if row.kind in (Kind.HISTOGRAM, Kind.COUNTER):
            measured.instruments.record(sample)
        else:
            observed.append(sample)
    measured.current = observed
    metrics = measured.collect()
    assert set(metrics) == set(rows)
    for name, metric in metrics.items():
        row = rows[name]
        assert (metric.unit, metric.description) == (row.unit, row.help)
        [point] = metric.data.data_points
        assert dict(point.attributes or {}) == {**ABOUT_SERVER, **dict.fromkeys(row.attributes, "x")}
        if isinstance(point, HistogramDataPoint):
            assert tuple(point.explicit_bounds) == row.buckets
            assert row.kind is Kind.HISTOGRAM


@pytest.mark.parametrize(
    "sample",
    [
        Sample("llamacpp.nothing", 1.0),
        Sample("llamacpp.requests", 1, SERVER, {"outcome": "ok", "slot": 3}),
        Sample("llamacpp.server.up", 1, SERVER),
    ],
)
def test_instruments_record_invalid_sample(measured: Measured, sample: Sample) -> None:
    with pytest.raises(ValueError, match=sample.metric):
        measured.instruments.record(sample)


def test_instruments_observe_leaves_out_invalid_samples(measured: Measured, caplog: pytest.LogCaptureFixture) -> None:
    measured.current = [
        Sample("llamacpp.nothing", 1.0),
        Sample("llamacpp.requests", 1, SERVER, {"outcome": "ok"}),
        Sample("llamacpp.server.up", 1, SERVER),
    ]
    assert measured.points() == {"llamacpp.server.up": [(ABOUT_SERVER, 1)]}
    measured.now += 10
    measured.collect()
    assert [record.message for record in caplog.records] == [
        "a sample was left out: llamacpp.nothing is not in the metric table",
        "a sample was left out: llamacpp.requests is recorded, not observed",
    ]


def test_instruments_observe_no_series_of_a_removed_server(measured: Measured) -> None:
    other = ServerInfo("unix.sock")
    measured.current = [Sample("llamacpp.server.up", 1, SERVER), Sample("llamacpp.server.up", 0, other)]
    assert measured.points()["llamacpp.server.up"] == [(ABOUT_SERVER, 1), ({"server.address": "unix.sock"}, 0)]
    measured.now, measured.current = 10.0, [Sample("llamacpp.server.up", 0, other)]
    assert measured.points()["llamacpp.server.up"] == [({"server.address": "unix.sock"}, 0)]
    measured.now, measured.current = 20.0, []
    assert measured.points() == {}


def test_instruments_share_a_snapshot_between_readers(measured: Measured) -> None:
    measured.current = [Sample("llamacpp.server.up", 1, SERVER), Sample("llamacpp.server.restarts", 0, SERVER)]
    measured.collect(0)
    measured.collect(1)
    assert measured.snapshots_taken == 1
    measured.now += 1
    measured.collect(1)
    measured.collect(0)
    assert measured.snapshots_taken == 2
    measured.instruments.expire()
    measured.collect(0)
    assert measured.snapshots_taken == 3


def test_instruments_collection_uses_one_snapshot(measured: Measured) -> None:
    class Slow:
        """Time passes while the SDK goes from one instrument to the next."""

        def __iter__(self) -> Iterator[Sample]:
            yield Sample("llamacpp.tokens", measured.snapshots_taken, SERVER, {"type": "output"})
            yield Sample("llamacpp.server.up", measured.snapshots_taken, SERVER)

    measured.current = Slow()
    ticking = iter(range(10**6))
    measured.instruments._clock = lambda: float(next(ticking))
    for expected in (1, 2, 3):
        points = measured.points()
        assert points["llamacpp.tokens"][0][1] == points["llamacpp.server.up"][0][1] == expected


def test_instruments_readers_on_different_threads(measured: Measured) -> None:
    measured.current = [Sample("llamacpp.server.up", 1, SERVER)]
    found: list[Points] = []

    def collect(reader: int) -> None:
        for _ in range(50):
            measured.now += 1
            found.append(measured.points(reader))

    threads = [threading.Thread(target=collect, args=(reader,)) for reader in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"llamacpp.server.up": [(ABOUT_SERVER, 1)]}] * 100


def test_instruments_failing_snapshot_is_read_once(measured: Measured, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __iter__(self) -> Iterator[Sample]:
            raise RuntimeError("no snapshot")

    measured.current = Broken()
    assert measured.points() == {}
    assert measured.snapshots_taken == 1
    assert len(caplog.records) == 1


GEN_AI = {"gen_ai.operation.name": "generate_content", "gen_ai.provider.name": "llama.cpp"}


def test_requests_collector_completed_request() -> None:
    assert samples_of(RequestsCollector(), completion()) == {
        "gen_ai.server.request.duration": [(1.75, GEN_AI)],
        "gen_ai.server.time_to_first_token": [(0.75, GEN_AI)],
        "gen_ai.server.time_per_output_token": [(0.05, GEN_AI)],
        "llamacpp.requests": [(1, {"outcome": "ok"})],
        "llamacpp.request.queue.duration": [(0.25, {})],
        "llamacpp.request.prefill.duration": [(0.5, {})],
        "llamacpp.request.decode.duration": [(1.0, {})],
        "llamacpp.request.input_tokens": [(40, {})],
        "llamacpp.request.cached_tokens": [(10, {})],
        "llamacpp.request.output_tokens": [(21, {})],
    }


@pytest.mark.parametrize(
    ("outcome", "error", "error_type"),
    [
        (Outcome.CANCELLED, None, "cancelled"),
        (Outcome.ERROR, "who knows", "_OTHER"),
        (Outcome.CONTEXT_FULL, "Context size has been exceeded.", "context_full"),
    ],
)
def test_requests_collector_request_without_figures(outcome: Outcome, error: str | None, error_type: str) -> None:
    assert samples_of(RequestsCollector(), cut_short(outcome, error)) == {
        "gen_ai.server.request.duration": [(1.5, {**GEN_AI, "error.type": error_type})],
        "llamacpp.requests": [(1, {"outcome": outcome.value})],
    }


def test_requests_collector_time_outside_llama_server() -> None:
    """From the arrival at Ollama until the arrival at llama-server, a quarter of a second before the slot."""
    access = Access(START_TIME - 1.0, START_TIME + 1.5, "POST", "/api/chat", 200)
    found = samples_of(RequestsCollector(), completion(access=access))
    assert found["llamacpp.request.outside.duration"] == [(0.75, {})]


def test_requests_collector_further_choice() -> None:
    assert samples_of(RequestsCollector(), completion(is_child=True)) == {
        "gen_ai.server.time_per_output_token": [(0.05, GEN_AI)],
        "llamacpp.request.decode.duration": [(1.0, {})],
        "llamacpp.request.output_tokens": [(21, {})],
    }


def test_tokens_collector_counters() -> None:
    assert samples_of(TokensCollector(), snapshot()) == {
        "llamacpp.tokens": [
            (300.0, {"type": "input_computed"}),
            (100.0, {"type": "input_cached"}),
            (210.0, {"type": "output"}),
        ]
    }
    busy = server_snapshot(counters={"prompt_seconds_total": 1.5, "tokens_predicted_seconds_total": 2.5})
    assert samples_of(TokensCollector(), snapshot(busy)) == {
        "llamacpp.processing_time": [(1.5, {"phase": "prefill"}), (2.5, {"phase": "decode"})]
    }
    stepping = server_snapshot(counters={"n_decode_total": 7.0})
    assert samples_of(TokensCollector(), snapshot(stepping)) == {"llamacpp.decode.steps": [(7.0, {})]}
    drafting = server_snapshot(
        counters={"spec_decode_num_draft_tokens_total": 8.0, "spec_decode_num_accepted_tokens_total": 0.0}
    )
    assert samples_of(TokensCollector(), snapshot(drafting)) == {
        "llamacpp.speculative.tokens": [(8.0, {"type": "drafted"}), (0.0, {"type": "accepted"})]
    }


OWN = ("llamatel.build.info", "llamatel.process.cpu.time", "llamatel.process.memory.usage")


def server_samples(state: Snapshot) -> dict[str, list[tuple[float, Mapping[str, Any]]]]:
    found = samples_of(ServerCollector(), state)
    return {name: samples for name, samples in found.items() if name not in OWN}


def test_server_collector_own_process() -> None:
    found = samples_of(ServerCollector(), snapshot())
    [(one, build)] = found["llamatel.build.info"]
    assert (one, set(build)) == (1, {"version", "python_version"})
    [(cpu_s, _)] = found["llamatel.process.cpu.time"]
    [(memory, _)] = found["llamatel.process.memory.usage"]
    assert cpu_s > 0
    assert memory > 10 << 20


def test_server_collector_samples() -> None:
    assert server_samples(snapshot(records_dropped={"queue_full": 4})) == {
        "llamacpp.server.up": [(1, {})],
        "llamacpp.server.stale": [(0, {})],
        "llamacpp.server.restarts": [(1, {})],
        "llamacpp.server.start_time": [(server_snapshot().process_started_at, {})],
        "llamacpp.server.loading.duration": [(0.75, {})],
        "llamacpp.server.info": [(1, {"build": "b7001", "backend": "llama-server"})],
        "llamatel.log.lines": [(70, {"kind": "request"}), (1, {"kind": "other"})],
        "llamatel.requests.lost": [(2, {})],
        "llamatel.log.understood": [(1, {})],
        "llamatel.log.lost": [(4096, {})],
        "llamatel.log.names.limited": [(0, {})],
        "llamatel.log.silent.duration": [(0.0, {})],
        "llamatel.records.dropped": [
            (4 if reason == "queue_full" else 0, {"reason": reason}) for reason in DROP_REASONS
        ],
    }


def test_server_collector_unknown_server() -> None:
    address_only = ServerInfo("127.0.0.1", 8090)
    bare = server_snapshot(
        server=address_only, up=False, restarts=None, process_started_at=None, loading_s=None, log=None
    )
    assert server_samples(snapshot(bare)) == {
        "llamacpp.server.up": [(0, {})],
        "llamatel.records.dropped": [(0, {"reason": reason}) for reason in DROP_REASONS],
    }
