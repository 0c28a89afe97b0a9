"""The metrics endpoint, as Prometheus and promtool see it."""

from __future__ import annotations

import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families

from llamatel.collectors import Sample
from llamatel.errors import PipelineError
from llamatel.metrics import METRICS, Kind, Metric
from llamatel.records import Outcome, ServerInfo
from llamatel.telemetry import pipeline_builder
from llamatel.telemetry.instruments import Instruments
from llamatel.telemetry.settings import Settings
from tests.parts import OtlpSink, Prometheus, accepts, free_port, scrape_config, wait_until
from tests.samples import SERVER, completion, cut_short, known_snapshot, model_snapshot, server_snapshot, snapshot
from tests.telemetry import Telemetry, telemetry

ANY_PORT = "127.0.0.1:0"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def scrape(running: Telemetry, accept: str = "*/*") -> str:
    assert running.pipeline.metrics_url is not None
    request = urllib.request.Request(running.pipeline.metrics_url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def feed(running: Telemetry) -> None:
    """Samples for most metrics."""
    for index in range(100):
        running.send(
            completion(prefill_s=0.1 + index / 100, first_token_at=completion().started_at + 0.1 + index / 100)
        )
    running.send(cut_short(Outcome.CANCELLED))
    running.send(cut_short(Outcome.OK))
    counters = {
        **server_snapshot().counters,
        "spec_decode_num_draft_tokens_total": 8.0,
        "spec_decode_num_accepted_tokens_total": 4.0,
    }
    running.state = snapshot(known_snapshot(counters=counters), model_snapshot(), records_dropped={"queue_full": 0})


def one_of_each(rows: Iterable[Metric]) -> list[Sample]:
    """A sample for each row of the table, with all its attributes."""
    return [Sample(row.name, 1, SERVER, {name: f"a {name}" for name in row.attributes}) for row in rows]


def test_exposition_passes_promtool(promtool: Path) -> None:
    recorded = [row for row in METRICS if row.kind in (Kind.HISTOGRAM, Kind.COUNTER)]
    built = pipeline_builder.build(Settings.from_env({}, metrics_addr=ANY_PORT))
    try:
        observed = [row for row in METRICS if row not in recorded]
        instruments = Instruments(built.meter, METRICS, lambda: one_of_each(observed), store=built.store)
        for sample in one_of_each(recorded):
            instruments.record(sample)
        assert built.metrics_url is not None
        with urllib.request.urlopen(built.metrics_url, timeout=10) as answer:
            text = answer.read().decode()
    finally:
        built.shutdown(0.2)
    families = {family.name for family in text_string_to_metric_families(text)}
    assert len(families) == len(METRICS) + 1  # and target_info
    checked = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_exposition_labels() -> None:
    with telemetry(metrics_addr=ANY_PORT) as running:
        feed(running)
        text = scrape(running)
    labels = {
        sample.name: set(sample.labels) for family in text_string_to_metric_families(text) for sample in family.samples
    }
    server = {"server_address", "server_port", "gen_ai_request_model"}
    assert labels["llamacpp_requests_total"] == {*server, "outcome"}
    assert labels["llamacpp_request_prefill_duration_seconds_bucket"] == {*server, "le"}
    assert labels["llamatel_records_dropped_total"] == {"reason"}
    assert {"service_name", "service_instance_id", "host_name"} <= labels["target_info"]


def test_exposition_many_servers() -> None:
    many = [server_snapshot(server=ServerInfo("127.0.0.1", port), log=None) for port in range(1, 2501)]
    with telemetry(metrics_addr=ANY_PORT) as running:
        running.state = snapshot(*many)
        text = scrape(running)
    assert len(re.findall(r"^llamacpp_server_up{", text, re.MULTILINE)) == 2500
    assert "otel_metric_overflow" not in text


def test_prometheus_scrapes_a_ttft_quantile(
    prometheus: Callable[[Mapping[str, Any]], Prometheus],
) -> None:
    with telemetry(metrics_addr=ANY_PORT) as running:
        assert running.pipeline.metrics_url is not None
        address = running.pipeline.metrics_url.removeprefix("http://").removesuffix("/metrics")
        running.send(completion())
        server = prometheus(scrape_config(address))
        server.wait_for("gen_ai_server_time_to_first_token_seconds_count == 1")
        feed(running)
        server.wait_for("gen_ai_server_time_to_first_token_seconds_count == 101")
        quantile = "histogram_quantile(0.5, sum by (le) (rate(gen_ai_server_time_to_first_token_seconds_bucket[1m])))"
        [(_, half)] = server.wait_for(quantile)
        # Queue 0.25 s and prefill 0.1 to 1.1 s: the true median is 0.85 s, in the bucket from 0.75 to 1.
        assert 0.75 <= half <= 1.0
        [(labels, value)] = server.query("llamacpp_server_up")
        assert value == 1
        assert (labels["job"], labels["server_port"]) == ("llamatel", "8090")
        [(_, ok)] = server.query('llamacpp_requests_total{outcome="ok"}')
        assert ok == 102
        [(_, joined)] = server.query("llamacpp_server_up * on (job, instance) group_left (service_name) target_info")
        assert joined == 1

        running.state = snapshot().__class__(taken_at=0.0)
        server.wait_for("absent(llamacpp_server_up)")
        assert [target["health"] for target in server.targets()] == ["up"]


def test_exemplars_lead_from_a_bucket_to_the_trace(
    otlp_sink: OtlpSink, prometheus: Callable[[Mapping[str, Any]], Prometheus]
) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp_sink.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    with telemetry(env, metrics_addr=ANY_PORT) as running:
        assert running.pipeline.metrics_url is not None
        running.send(completion())
        # Neither an export over OTLP nor an earlier scrape removes the exemplar for the others.
        assert running.pipeline.flush()
        assert " # {" not in scrape(running)
        first, second = scrape(running, OPEN_METRICS), scrape(running, OPEN_METRICS)
        assert first.count(" # {") == second.count(" # {") > 0
        families = open_metrics_families(first)  # type: ignore[no-untyped-call]
        assert series(families) == series(text_string_to_metric_families(scrape(running)))

        server = prometheus(scrape_config(running.pipeline.metrics_url.split("/")[2]))
        name = "gen_ai_server_time_to_first_token_seconds_bucket"
        now = time.time()
        [found] = wait_until(
            lambda: server.api("query_exemplars", query=name, start=now - 60, end=now + 60), 20, "an exemplar"
        )
    span = next(span for span in otlp_sink.spans() if span.kind == "SERVER")
    assert found["seriesLabels"]["le"] == "0.75"
    [exemplar] = found["exemplars"]
    assert exemplar["labels"] == {"trace_id": span.trace_id, "span_id": span.span_id}
    assert float(exemplar["value"]) == completion().time_to_first_token_s


def series(families: Iterable[Any]) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Names and labels of all that is shown."""
    return {(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples}


def test_exemplars_are_in_their_bucket() -> None:
    with telemetry({"OTEL_TRACES_EXPORTER": "console"}, metrics_addr=ANY_PORT) as running:
        for end in (0.1, 0.2):
            running.send(completion(first_token_at=completion().started_at + end))
        lines = [line for line in scrape(running, OPEN_METRICS).splitlines() if " # {" in line]
    buckets = [line for line in lines if line.startswith("gen_ai_server_time_to_first_token_seconds_bucket")]
    assert buckets
    for line in buckets:
        found = re.search(r'le="([^"]+)".* # \{[^}]*\} ([\d.]+) ', line)
        assert found is not None, line
        assert float(found[2]) <= float(found[1])
    assert all(line.startswith("gen_ai_") for line in lines)


def test_metrics_endpoint_concurrent_scrapes() -> None:
    with telemetry(metrics_addr=ANY_PORT) as running:
        feed(running)
        expected = scrape(running).count("\n")
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.extend(scrape(running).count("\n") for _ in range(5)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [expected] * 40


def test_metrics_endpoint_address_in_use() -> None:
    with telemetry(metrics_addr=ANY_PORT) as running:
        assert running.pipeline.metrics_url is not None
        taken = running.pipeline.metrics_url.removeprefix("http://").removesuffix("/metrics")
        with pytest.raises(PipelineError, match=f"{taken} is in use.*--metrics-addr 127.0.0.1:0.*none") as refused:
            # A process of its own would have no provider yet; in this one it must not find the first one's.
            build_alone(Settings.from_env({}, metrics_addr=taken))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("address", ["192.0.2.1:9464", "no-such-host.invalid:9464"])
def test_metrics_endpoint_foreign_address(address: str) -> None:
    with pytest.raises(PipelineError, match="cannot listen on the metrics address"):
        build_alone(Settings.from_env({}, metrics_addr=address))


def build_alone(settings: Settings) -> None:
    """Build as if no pipeline had been built in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_builder, "is_placeholder", lambda _provider: True)
        pipeline_builder.build(settings)


def test_metrics_endpoint_closes_with_shutdown() -> None:
    port = free_port()
    for _ in range(2):
        with telemetry(metrics_addr=f"127.0.0.1:{port}") as running:
            assert accepts(port)
            assert running.pipeline.metrics_url == f"http://127.0.0.1:{port}/metrics"
            assert running.pipeline.shutdown()
            assert not accepts(port)


def test_metrics_endpoint_ipv6() -> None:
    with telemetry(metrics_addr="[::1]:0") as running:
        assert running.pipeline.metrics_url is not None
        assert running.pipeline.metrics_url.startswith("http://[::1]:")
        assert "target_info" in scrape(running)
