"""The metrics page: both formats, families shared with other instrumentation, metrics for gateways."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families

from llamatel.collectors import Sample
from llamatel.metrics import METRICS
from llamatel.telemetry.exposition import Exposition
from llamatel.telemetry.instruments import Instruments
from llamatel.telemetry.metric_store import MetricStore
from tests.samples import SERVER

HOSTILE = 'a"b\\c\nd{e}'


class Page:
    """An exposition with a store, and a provider used by other instrumentation."""

    def __init__(self, *observed: Sample, resource: Mapping[str, object] | None = None, gateway: bool = False) -> None:
        store = MetricStore()
        self.exposition = Exposition(store, resource or {"service.name": "s"}, gateway=gateway)
        self.provider = MeterProvider([self.exposition.reader], shutdown_on_exit=False)
        self.instruments = Instruments(None, METRICS, lambda: observed, store=store)


@pytest.mark.parametrize("open_metrics", [False, True])
def test_exposition_is_parsed_back(open_metrics: bool) -> None:
    page = Page(Sample("llamacpp.slots", 3, SERVER, {"state": HOSTILE}), resource={"service.name": HOSTILE})
    for value in (0.001, 0.0011, 1e9):
        page.instruments.record(Sample("llamacpp.request.queue.duration", value, SERVER))
    page.instruments.record(Sample("llamacpp.requests", 2, SERVER, {"outcome": "ok"}))
    text = page.exposition.page(open_metrics=open_metrics)
    parse = open_metrics_families if open_metrics else text_string_to_metric_families
    families = {family.name: family for family in parse(text)}
    slots = families["llamacpp_slots"].samples[0]
    assert (slots.value, slots.labels["state"]) == (3.0, HOSTILE)
    histogram = families["llamacpp_request_queue_duration_seconds"]
    counts = {s.labels["le"]: s.value for s in histogram.samples if s.name.endswith("_bucket")}
    assert (counts["0.001"], counts["0.0025"], counts["+Inf"]) == (1, 2, 3)
    assert next(s.value for s in histogram.samples if s.name.endswith("_sum")) == math.fsum((0.001, 0.0011, 1e9))
    requests = families["llamacpp_requests"]
    assert (requests.type, requests.samples[0].name, requests.samples[0].value) == (
        "counter",
        "llamacpp_requests_total",
        2,
    )
    assert text.endswith("# EOF\n") == open_metrics


@pytest.mark.parametrize("open_metrics", [False, True])
def test_exposition_shares_a_family_with_other_instrumentation(open_metrics: bool) -> None:
    page = Page()
    page.instruments.record(Sample("gen_ai.client.operation.duration", 1.0, SERVER))
    meter = page.provider.get_meter("another")
    meter.create_histogram("gen_ai.client.operation.duration", "s").record(2.0, {"gen_ai.provider.name": "openai"})
    meter.create_counter("another.count").add(5)
    text = page.exposition.page(open_metrics=open_metrics)
    assert text.count("# TYPE gen_ai_client_operation_duration_seconds histogram") == 1
    assert (
        len([line for line in text.splitlines() if line.startswith("gen_ai_client_operation_duration_seconds_sum")])
        == 2
    )
    assert "another_count_total 5.0" in text
    parse = open_metrics_families if open_metrics else text_string_to_metric_families
    assert len(list(parse(text))) == 3


def test_exposition_metrics_for_gateways() -> None:
    observed = (
        Sample("llamacpp.requests.deferred", 4, SERVER),
        Sample("llamacpp.kv_cache.usage", 0.25, SERVER, {"state": "active"}),
        Sample("llamacpp.kv_cache.usage", 0.5, SERVER, {"state": "cached"}),
        Sample("llamacpp.lora.adapter", 1, SERVER, {"adapter": "sql"}),
        Sample("llamacpp.lora.adapter", 1, SERVER, {"adapter": "chat"}),
    )
    assert "vllm:" not in Page(*observed).exposition.page()
    text = Page(*observed, gateway=True).exposition.page()
    assert 'vllm:num_requests_waiting{model_name="tiny"} 4.0' in text
    assert 'vllm:kv_cache_usage_perc{model_name="tiny"} 0.25' in text
    assert text.count("vllm:kv_cache_usage_perc{") == 1
    [adapters] = [line for line in text.splitlines() if line.startswith("vllm:lora_requests_info{")]
    labels, _, value = adapters.rpartition(" ")
    assert 'max_lora="2",model_name="tiny",running_lora_adapters="sql,chat",waiting_lora_adapters=""' in labels
    assert abs(float(value) - time.time()) < 60
